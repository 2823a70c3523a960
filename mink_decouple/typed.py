"""A plain mapping to a typed record: every value converted to its field's type, every error collected."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import field
from typing import Any


class ConfigError(ValueError):
    """All errors of one configuration, one per line."""


def setting(default: Any, *, choices: tuple[Any, ...] = (), low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with the values it accepts: a tuple of choices, or a closed range."""
    metadata = {"choices": choices, "low": low, "high": high}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """`` (nearest: x)`` where a similar word exists, else an empty text."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (nearest: {near[0]})" if near else ""


def record(cls: type, tree: Any, prefix: str, errors: list[str]) -> Any:
    """`tree` as an instance of the dataclass `cls`; all that is wrong goes to `errors`, keys under `prefix`."""
    if not isinstance(tree, dict):
        errors.append(f"{prefix.rstrip('.')}: expected a mapping, found {tree!r}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in tree.items():
        if key not in fields:
            errors.append(f"{prefix}{key}: unknown key{nearest(str(key), fields)}; keys here: {', '.join(fields)}")
            continue
        values[key] = _value(hints[key], value, f"{prefix}{key}", fields[key].metadata, errors)
    return cls(**values) if not errors else None


def _value(hint: Any, value: Any, key: str, limits: typing.Mapping[str, Any], errors: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return record(typing.cast(type, hint), {} if value is None else value, f"{key}.", errors)
    try:
        value = _convert(hint, value)
    except ValueError as error:
        errors.append(f"{key}: expected {error}, found {value!r}")
        return None
    if value is None:
        return None
    choices, low, high = limits.get("choices"), limits.get("low"), limits.get("high")
    if choices and value not in choices:
        errors.append(f"{key}: unknown value {value!r}{nearest(str(value), choices)}; choices: {', '.join(choices)}")
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        errors.append(f"{key}: {value!r} is out of range; must be {span}")
    return value


def _convert(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`; ValueError with the words for what was expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value)
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("true or false")
    if hint is int:
        if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ValueError("a whole number")
    if hint is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)
            except ValueError:
                raise ValueError("a number") from None
            if number == number and abs(number) != float("inf"):
                return number
        raise ValueError("a finite number")
    if hint is str:
        if isinstance(value, bool):  # PyYAML reads the words off and on as booleans
            return "on" if value else "off"
        if isinstance(value, (str, int, float)):
            return str(value)
        raise ValueError("text")
    if origin is list:
        if isinstance(value, (list, tuple)):
            return [_convert(args[0], v) for v in value]
        raise ValueError("a list")
    if origin is dict:
        if value is None:
            return {}
        if isinstance(value, dict):
            return {str(k): _convert(args[1], v) for k, v in value.items()}
        raise ValueError("a mapping")
    raise AssertionError(f"no conversion for {hint}")
