"""Typed configuration: dataclass defaults <- YAML with `base:` <- backbone and recipe files <- `a.b=c` overrides.

Every value is converted to its field's type (PyYAML reads ``1e-3`` as text) and every error of a
configuration is reported at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from pathlib import Path
from typing import Any

import yaml

from mink_decouple.sections import (
    BACKBONES,
    ENGINES,
    PREPARED,
    CheckpointsConfig,
    Config,
    DataConfig,
    EmaConfig,
    EvalConfig,
    ForestConfig,
    LabelsConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PseudoConfig,
    ScheduleConfig,
    SecondStepConfig,
    SegmentsConfig,
    StageConfig,
    SyntheticConfig,
    ViewConfig,
)
from mink_decouple.typed import ConfigError, nearest, record

__all__ = [
    "ALIASES",
    "BACKBONES",
    "ENGINES",
    "PREPARED",
    "TRAINED",
    "CheckpointsConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EmaConfig",
    "EvalConfig",
    "ForestConfig",
    "LabelsConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PseudoConfig",
    "ScheduleConfig",
    "SecondStepConfig",
    "SegmentsConfig",
    "StageConfig",
    "SyntheticConfig",
    "ViewConfig",
    "build",
    "configs_dir",
    "dump",
    "load_config",
    "loads",
    "merge",
    "outweighed",
    "override",
    "parse_overrides",
    "read_tree",
    "read_yaml",
    "replace_data",
    "require_free",
    "shipped",
]

ALIASES = {"mink": "minkunet", "randlanet": "randla"}


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """A new mapping: `high` over `low`, mappings merged key by key, anything else replaced."""
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping, without its bases. Raises FileNotFoundError or ConfigError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    return tree


def read_tree(path: Path, backbone: str | None = None, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One YAML mapping merged over the files its `base:` names (relative to it).

    With a backbone every file has its section of that backbone merged over its own settings first, so that a file wins
    over all of its bases.
    """
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: `base:` leads back to itself")
    tree = read_yaml(path)
    bases = tree.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base: expected a file or a list of files, found {bases!r}")
    low: dict[str, Any] = {}
    for base in bases:
        low = merge(low, read_tree(path.parent / base, backbone, (*seen, path)))
    return merge(low, tree if backbone is None else _for_backbone(tree, backbone, path))


def configs_dir() -> Path:
    """The folder of the shipped configurations: beside the package in a checkout, inside it when installed."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "configs", here / "configs"):
        if (folder / "base.yaml").is_file():
            return folder
    raise FileNotFoundError(f"{here.parent / 'configs'}: the shipped configurations are missing")


def shipped(kind: str, name: str) -> Path:
    """The file of a recipe or backbone given by name, or by path. Raises ConfigError with the names there are."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = configs_dir() / kind
    path = folder / f"{name}.yaml"
    if path.is_file():
        return path
    names = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    alone = [one for one in names if "/" not in one]
    groups = sorted({one.split("/")[0] for one in names if "/" in one})
    more = [f"{group}/NAME ({sum(one.startswith(group + '/') for one in names)})" for group in groups]
    choices = ", ".join([*alone, *more])
    raise ConfigError(f"{kind.rstrip('s')} {name!r}: unknown{nearest(name, names)}; choices: {choices}")


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """``["a.b=c"]`` -> ``{"a": {"b": c}}``; values are read as YAML."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair!r}: expected key=value, for example schedule.iterations=2")
        try:
            value: Any = yaml.safe_load(text) if text.strip() else None
        except yaml.YAMLError:
            raise ConfigError(f"--set {pair!r}: the value is not valid YAML") from None
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def load_config(
    path: str | Path | None = None,
    *,
    backbone: str | None = None,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Config:
    """The configuration of one run.

    Order, later wins: dataclass defaults, `configs/backbone/NAME.yaml`, the file, `configs/recipes/NAME.yaml`,
    `overrides`; a file and a recipe over their bases, in each the section `backbones: NAME:` over the rest. A resolved
    file (one that a run wrote) stands alone below the overrides.

    Raises:
        ConfigError: every unknown key, wrong type and wrong value, one line each.
    """
    overrides = overrides or {}
    path = Path(path) if path is not None else configs_dir() / "synthetic.yaml"
    tree = read_tree(path)
    if tree.pop("resolved", False):
        for name, value in (("backbone", backbone), ("recipe", recipe)):
            if value is not None and ALIASES.get(value, value) != tree.get(name):
                raise ConfigError(f"{path}: a resolved configuration is for {name} {tree.get(name)!r}, not {value!r}")
        return build(merge(tree, overrides), str(path))
    name = str(overrides.get("backbone") or backbone or tree.get("backbone") or Config.backbone)
    name = ALIASES.get(name, name)
    if name not in BACKBONES:
        raise ConfigError(
            f"backbone: unknown value {name!r}{nearest(name, BACKBONES)}; choices: {', '.join(BACKBONES)}"
        )
    recipe_name = str(overrides.get("recipe") or recipe or tree.get("recipe") or Config.recipe)
    merged = read_tree(shipped("backbone", name))
    chosen = read_tree(shipped("recipes", recipe_name), name)
    budget, asked = (layer.get("labels", {}).get("budget") for layer in (chosen, overrides))
    if budget is not None and asked is not None and asked != budget:
        raise ConfigError(
            f"labels.budget {asked!r}: the recipe {recipe_name!r} is for the budget {budget!r}; drop --labels"
        )
    for layer in (read_tree(path, name), chosen, overrides):
        merged = merge(merged, layer)
    merged["backbone"] = name
    merged["recipe"] = Path(recipe_name).stem if recipe_name.endswith((".yaml", ".yml")) else recipe_name
    return build(merged, str(path))


def outweighed(path: Path, config: Config, recipe_name: str | None = None) -> list[str]:
    """Settings, as `a.b`, that a user's file asks for and that its recipe has decided otherwise.

    Args:
        path: the file. It speaks with those of its bases that are the user's, too.
        config: what came of it.
        recipe_name: the recipe that was given beside it; None: the file's.
    """
    own = _own_tree(path.resolve(), config.backbone)
    if own.pop("resolved", False):
        return []
    try:
        recipe = shipped("recipes", recipe_name or own.get("recipe") or config.recipe)
    except ConfigError:  # --set recipe=FILE: its name alone is known
        return []
    asked, decided = _flat(own), _flat(read_tree(recipe, config.backbone))
    final = _flat(dataclasses.asdict(config))
    return [key for key, value in asked.items() if key in decided and value != decided[key] == final.get(key)]


def _own_tree(path: Path, backbone: str) -> dict[str, Any]:
    """A file merged over its bases as far as they are not shipped, as `read_tree` does."""
    if path.is_relative_to(configs_dir()):
        return {}
    tree = read_yaml(path)
    bases = tree.pop("base", [])
    low: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        low = merge(low, _own_tree((path.parent / base).resolve(), backbone))
    return merge(low, _for_backbone(tree, backbone, path))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _for_backbone(tree: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A file's settings with its section of one backbone merged over them, and without the others."""
    sections = tree.pop("backbones", None) or {}
    if not isinstance(sections, dict) or not all(s is None or isinstance(s, dict) for s in sections.values()):
        raise ConfigError(f"{path}: backbones: expected a mapping of a backbone to its settings")
    for key in sections:
        if key not in BACKBONES:
            raise ConfigError(
                f"{path}: backbones: unknown backbone {key!r}{nearest(str(key), BACKBONES)}; "
                f"choices: {', '.join(BACKBONES)}"
            )
    return merge(tree, sections.get(name) or {})


def build(tree: dict[str, Any], source: str = "config") -> Config:
    """A Config from a plain mapping. Raises ConfigError with one line for every wrong key or value."""
    errors: list[str] = []
    config = record(Config, tree, "", errors)
    if errors:
        raise ConfigError("\n".join(f"{source}: {line}" for line in errors))
    return typing.cast(Config, config)


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal Config."""
    return yaml.safe_dump({"resolved": True, **dataclasses.asdict(config)}, sort_keys=False)


def digest(config: Config) -> str:
    """16 hexadecimal digits that stand for the settings of a run, whatever its seed.

    Equal settings give equal digits: the recipe's name, the checkpoints kept and the engine, which computes the same
    numbers, do not count, nor do settings at their default, so that a switch of a later version changes nothing
    where it is off.
    """
    defaults = dataclasses.asdict(Config())
    tree = dataclasses.asdict(config)
    for key in ("seed", "recipe", "checkpoints"):
        tree.pop(key)
    tree["model"].pop("engine")
    text = json.dumps(_changed(tree, defaults), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pretraining(config: Config) -> Config:
    """The configuration with every setting at its default that the pre-training does not depend on.

    Runs of one seed for which these are equal share their pre-training to the last bit. The names of recipes, the
    checkpoints kept and the way to score do not count.
    """
    later: dict[str, Any] = {"recipe": Config.recipe, "checkpoints": CheckpointsConfig(), "eval": EvalConfig()}
    if config.schedule.mode != "supervised":  # that lasts as long as all stages together
        labels, kept = config.labels, ["class_weight", "absent", *_ERDA]
        if labels.spread != "none" and labels.spread_in == "all":
            kept += ["seg_norm", "seg_lambda", "pseudo_weight"]
            if labels.spread != "forest":
                later["forest"] = ForestConfig()
        else:
            later["labels"] = dataclasses.replace(labels, spread="none", spread_in="pseudo")
            later |= {"segments": SegmentsConfig(), "forest": ForestConfig()}
        later["loss"] = LossConfig(**{key: getattr(config.loss, key) for key in kept})
        schedule, default = config.schedule, ScheduleConfig()
        later["schedule"] = dataclasses.replace(
            schedule, mode="decoupled", iterations=1, i_step=default.i_step, ii_step=default.ii_step
        )
        later |= {"pseudo": PseudoConfig(), "ii": SecondStepConfig()}
    return dataclasses.replace(config, **later)


_ERDA = ("erda", "erda_stages", "erda_momentum", "erda_temperature")


def _changed(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for key, value in tree.items():
        below = defaults.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and below:
            value = _changed(value, below)
            if value:
                changed[key] = value
        elif value != below:
            changed[key] = value
    return changed


def loads(text: str, source: str = "config") -> Config:
    """The inverse of `dump`, without reading any file."""
    tree = yaml.safe_load(text)
    tree.pop("resolved", None)
    return build(tree, source)


TRAINED = ("grid", "features", "height", "factors", "centre")
"""Settings of `data` that a trained network depends on."""


def replace_data(trained: Config, asked: Config) -> Config:
    """A trained network's configuration with the data, votes and engine of another.

    What the network sees stays as trained.
    """
    data = dataclasses.replace(asked.data, **{key: getattr(trained.data, key) for key in TRAINED})
    model = dataclasses.replace(trained.model, engine=asked.model.engine)
    return dataclasses.replace(trained, data=data, eval=asked.eval, model=model)


def require_free(overrides: dict[str, Any]) -> None:
    """Raises ConfigError for an override that a trained network leaves no room for."""

    def inside(section: str) -> dict[str, Any]:
        value = overrides.get(section)
        return value if isinstance(value, dict) else {}

    fixed = [key for key in overrides if key not in ("data", "eval", "model")]
    fixed += [f"data.{key}" for key in inside("data") if key in TRAINED]
    fixed += [f"model.{key}" for key in inside("model") if key != "engine"]
    if fixed:
        raise ConfigError(
            "\n".join(
                f"{key}: is fixed by the checkpoint; only data, eval and model.engine can be set" for key in fixed
            )
        )


def override(config: Config, overrides: dict[str, Any]) -> Config:
    """A configuration with some settings changed; raises ConfigError as `load_config`."""
    return build(merge(dataclasses.asdict(config), overrides), "--set")
