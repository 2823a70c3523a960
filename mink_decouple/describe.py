"""The page of all settings, from the sections of a configuration themselves: `python -m mink_decouple.describe`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from mink_decouple import sections
from mink_decouple.data.transforms import TRANSFORMS

HEAD = """# Settings

Every key of a configuration, with the default that holds where no file says otherwise: the method of the paper. What
the shipped configurations, backbones and recipes set is in `configs/`; the resolved settings of a run are in its
`config.yaml`. Later ones win: defaults, `configs/backbone/NAME.yaml`, the configuration, the recipe, `--set a.b=c`; a
configuration or recipe over its bases, in each file the section `backbones: NAME:` over the rest. So **a recipe wins
over a configuration**; a run says what it decides against your file.

    tools/train.py --config my_clouds.yaml --set view.crop_points=30000 --set 'augment.tilt={degrees: 3}'

This page is written by `python -m mink_decouple.describe > docs/settings.md`."""

FEATURES = """## Features

What `data.features` may name, in the order that the network gets them. Any other column of the files has its own name.

| feature | channels | what |
|---|---|---|
| `rgb` | 3 | colours from -0.5 to 0.5 |
| `height` | 1 | metres above the lowest points, or above the local ground (`data.height`) |
| `height_wide` | 1 | metres above a ground of cells twice as wide, which sees wide roofs as roofs |
| `xyz` | 3 | metres from the middle of the crop |
| `offset` | 3 | place in the voxel, -0.5 to 0.5 |
| `one` | 1 | the number 1 |
| `normal` | 3 | a column of that name, or `nx ny nz` of PLY, PCD, text and `.npy` files |
| `intensity`, `remission` | 1 | as in the file; `data.factors` brings them near 1 |
| `log_intensity` | 1 | logarithm of the intensity, 0 to 1 for 16 bits |
| `return_number`, `number_of_returns` | 1 | of LAS files |"""


def page() -> str:
    """Markdown: a table for each section, the features and the transforms."""
    parts = [HEAD, _section("", sections.Config)]
    for field in dataclasses.fields(sections.Config):
        parts += _sections(field.name, typing.get_type_hints(sections.Config)[field.name])
    return "\n\n".join([*parts, FEATURES, _transforms()]) + "\n"


def _sections(name: str, cls: Any) -> Iterator[str]:
    """A section and those inside it."""
    if not dataclasses.is_dataclass(cls) or cls is sections.StageConfig:
        return
    yield _section(name, typing.cast(type, cls))
    for key, hint in typing.get_type_hints(cls).items():
        yield from _sections(f"{name}.{key}", hint)


def _section(name: str, cls: type) -> str:
    """A section as a heading, its docstring and a table of its keys."""
    heading = f"## `{name}`\n\n{inspect.getdoc(cls)}\n\n" if name else ""
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in _rows(cls, cls(), "")]
    return f"{heading}| key | default | values | what |\n|---|---|---|---|\n" + "\n".join(rows)


def _rows(cls: type, defaults: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, default, values and comment of the keys that are no sections themselves; stages stand in their schedule."""
    hints, comments = typing.get_type_hints(cls), _comments(cls)
    for field in dataclasses.fields(cls):
        default = getattr(defaults, field.name)
        if hints[field.name] is sections.StageConfig:
            yield from _rows(sections.StageConfig, default, f"{field.name}.")
        elif not dataclasses.is_dataclass(hints[field.name]):
            yield f"`{prefix}{field.name}`", f"`{_yaml(default)}`", _values(field), comments[field.name]


def _comments(cls: type) -> dict[str, str]:
    """The comment behind each field, from the source."""
    source = inspect.getsource(cls)
    lines = source.splitlines()
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, mark, text = lines[(node.end_lineno or 1) - 1].partition("  # ")
            found[node.target.id] = text.replace("None:", "null:") if mark else ""
    return found


def _values(field: dataclasses.Field[Any]) -> str:
    choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if low is not None and high is not None:
        return f"{low:,g} to {high:,g}"
    return "" if low is None else f"from {low:,g}"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace("'", "") if isinstance(value, (list, dict)) else str(value)


def _transforms() -> str:
    lines = [
        "## `augment`",
        "",
        "Transforms of training samples by name, applied in this order: `augment: {flip: {}, jitter: {sigma: 0.01}}`;",
        "`null` switches one of a base off.",
        "",
        "| transform | parameters | what |",
        "|---|---|---|",
    ]
    for name, transform in TRANSFORMS.items():
        parameters = list(inspect.signature(transform).parameters.values())[2:]
        told = ", ".join(f"`{one.name}: {_yaml(one.default)}`" for one in parameters)
        what = (inspect.getdoc(transform) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
        lines.append(f"| `{name}` | {told} | {what} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
