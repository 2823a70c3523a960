"""Typed configuration: dataclass defaults <- YAML with `base:` <- backbone and recipe files <- `a.b=c` overrides.

Every value is converted to its field's type (PyYAML reads ``1e-3`` as text) and every error of a
configuration is reported at once.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mink_decouple.typed import ConfigError, nearest, record, setting

BACKBONES = ("minkunet", "randla")
ENGINES = ("auto", "native", "minkowski")
PREPARED = ("s3dis", "scannet", "semantic3d", "semantickitti")
"""Benchmarks: `data.root` is what `prepare` made of their downloads."""
ALIASES = {"mink": "minkunet", "randlanet": "randla"}


@dataclass(frozen=True)
class LabelsConfig:
    """Which labels training may see."""

    budget: str = "1pt"  # 1pt | Npt | R% | Nx | scans:R% | full | a label file
    unit: str = setting("grid", choices=("grid", "raw"))
    seed: int | None = None  # None: the run's seed


@dataclass(frozen=True)
class SyntheticConfig:
    """The embedded dataset: procedural buildings with S3DIS' 13 classes."""

    areas: int = setting(6, low=5, high=64)
    rooms_per_area: int = setting(6, low=1, high=1000)
    points_per_room: int = setting(45_000, low=1000)
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Where clouds come from and how they become rows of features."""

    dataset: str = setting("synthetic", choices=("synthetic", "folder", *PREPARED))
    root: str | None = None  # a folder of clouds, or one that `prepare` wrote
    classes: str | None = None  # classes.yaml; None: the one in `root`
    splits: dict[str, list[str]] | None = None  # split name -> names of scenes or groups; None: those of `root`
    eval_split: str = "val"
    grid: float = setting(0.05, low=1e-4)  # metres
    features: list[str] = setting(["rgb", "height"])
    height: str = setting("floor", choices=("floor", "ground"))  # above the lowest points, or above the local ground
    factors: dict[str, float] = setting({})  # feature name -> factor that brings its values near 1
    centre: str = setting("xyz", choices=("xyz", "xy"))  # axes on which the centre of a crop is subtracted
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class ModelConfig:
    """The network: one backbone and its classifier."""

    variant: str = "tiny"  # minkunet: tiny | 14A | 18A | 34C; randla: 5 | 4
    head: str = setting("linear", choices=("linear", "mlp"))
    engine: str = setting("auto", choices=ENGINES)  # of minkunet; auto: native


@dataclass(frozen=True)
class ViewConfig:
    """How a scene is cut into what a network sees in one step."""

    crop_points: int = setting(0, low=0)  # grid points of a crop; 0: whole scenes
    shape: str = setting("sphere", choices=("sphere", "column"))
    batch: int = setting(4, low=1)  # crops of a micro-batch
    accumulate: int = setting(1, low=1)  # micro-batches of an optimizer step
    label_centred: float = setting(0.5, low=0.0, high=1.0)  # share of pre-training crops centred on a labelled point
    center_noise: float = setting(0.35, low=0.0)  # metres
    workers: int = setting(1, low=0)  # threads that prepare batches ahead
    k: int = setting(16, low=1)  # neighbours of RandLA-Net
    voxel: list[float] | None = None  # MinkUNet's voxel along x, y, z, metres; None: cubes of `data.grid`


@dataclass(frozen=True)
class StageConfig:
    """Length and initial learning rate of one kind of stage."""

    epochs: int = setting(1, low=1)
    lr: float = setting(1e-3, low=0.0)


@dataclass(frozen=True)
class ScheduleConfig:
    """Algorithm 1: pre-train, then alternate the I-step and the II-step."""

    mode: str = setting("decoupled", choices=("decoupled", "joint", "supervised"))
    iterations: int = setting(10, low=0)
    steps: int = setting(0, low=0)  # optimizer steps of an epoch; 0: as many as cover the training set about once
    policy: str = setting("exp", choices=("exp", "cosine", "constant"))
    decay: float = setting(0.98, low=0.0, high=1.0)  # factor per epoch of policy exp
    warmup: int = setting(0, low=0)  # epochs of the pre-training over which the learning rate rises
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(epochs=100, lr=1e-2))
    i_step: StageConfig = field(default_factory=lambda: StageConfig(epochs=30, lr=1e-3))
    ii_step: StageConfig = field(default_factory=lambda: StageConfig(epochs=100, lr=1e-3))


@dataclass(frozen=True)
class PseudoConfig:
    """Two-round pseudo-label selection (Eq. 2 and 3)."""

    delta_d: float = setting(0.5, low=0.0, high=1.0)
    delta_len: float = setting(0.1, low=0.0, high=1.0)
    scope: str = setting("cloud", choices=("cloud", "global"))
    refresh: str = setting("iter", choices=("iter", "epoch"))
    uncertain: str = setting("threshold", choices=("threshold", "rate", "off"))
    beta: float = setting(0.5, low=0.0, high=1.0)
    floor: float = setting(0.0, low=0.0, high=1.0)
    tail_rule: str = setting("half", choices=("half", "below_mean", "all"))
    tail_frac: float = setting(0.5, low=0.0, high=1.0)
    rho_mode: str = setting("repaired", choices=("repaired", "literal"))
    rho_source: str = setting("auto", choices=("auto", "labels", "predicted"))
    votes: int = setting(1, low=1)  # augmented passes averaged when pseudo-labels are made


@dataclass(frozen=True)
class LossConfig:
    """The losses of the I-step (Eq. 4 to 8) and of supervised stages."""

    feature: str = setting("mifl", choices=("mifl", "focal", "none"))  # beside L_seg-I
    alpha: float = setting(0.5, low=0.0)
    alpha_mode: str = setting("constant", choices=("constant", "confidence"))
    gamma: float = setting(2.0, low=0.0)  # of `focal` (Eq. 4)
    s: float = setting(10.0, low=0.0)
    clamp_min: float | None = 0.0
    gamma_base: str = setting("seed", choices=("seed", "efl"))
    form: str = setting("softmax", choices=("softmax", "ovr"))
    efl_weight: bool = False
    g_source: str = setting("pseudo", choices=("pseudo", "all", "labels"))
    g_act: str = setting("softmax", choices=("softmax", "sigmoid"))
    g_reset: str = setting("iter", choices=("iter", "never"))
    seg_norm: str = setting("joint", choices=("joint", "split"))
    seg_lambda: float = setting(1.0, low=0.0)  # weight of the pseudo-labels where seg_norm is split
    class_weight: str = setting("inv", choices=("inv", "none"))  # 1 / (f + 0.02) of the visible labels


@dataclass(frozen=True)
class SecondStepConfig:
    """The II-step: the classifier alone, on features of a frozen backbone (Eq. 9)."""

    labels: str = setting("gt", choices=("gt", "pseudo", "mixed"))
    feature: str = setting("none", choices=("none", "mifl"))  # mifl: Table 7, the loss moved to the II-step
    cache_passes: int = setting(4, low=1)  # augmented passes over the training set whose features are kept
    rows: int = setting(4096, low=2)  # cached rows of one optimizer step
    context: int = setting(512, low=0)  # unlabelled rows kept per view, for the batch norm of an MLP head


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer; its state starts anew in every stage."""

    name: str = setting("adam", choices=("adam", "adamw", "sgd"))
    weight_decay: float = setting(0.0, low=0.0)
    momentum: float = setting(0.9, low=0.0, high=0.9999)  # of sgd; beta 1 of adam
    grad_clip: float = setting(10.0, low=0.0)  # L2 norm; 0: off
    precision: str = setting("fp32", choices=("fp32", "bf16"))


@dataclass(frozen=True)
class EvalConfig:
    """Voting evaluation on raw points."""

    votes: int = setting(4, low=1)  # augmented passes averaged
    every_iteration: bool = True  # evaluate after the pre-training and after every iteration


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    seed: int = 0
    backbone: str = setting("minkunet", choices=BACKBONES)
    recipe: str = "decoupled"
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    augment: dict[str, Any] = setting({})  # transform name -> parameters, or null to switch one off
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ii: SecondStepConfig = field(default_factory=SecondStepConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


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


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One YAML mapping merged over the files its `base:` names (relative to it)."""
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
        low = merge(low, read_tree(path.parent / base, (*seen, path)))
    return merge(low, tree)


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
    raise ConfigError(f"{kind.rstrip('s')} {name!r}: unknown{nearest(name, names)}; choices: {', '.join(names)}")


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

    Order, later wins: dataclass defaults, `configs/backbone/NAME.yaml`, the file with its bases, the file's
    `backbones: NAME:` section, `configs/recipes/NAME.yaml`, `overrides`. A resolved file (one that a run wrote) stands
    alone below the overrides.

    Raises:
        ConfigError: every unknown key, wrong type and wrong value, one line each.
    """
    overrides = overrides or {}
    path = Path(path) if path is not None else configs_dir() / "synthetic.yaml"
    tree = read_tree(path)
    if tree.pop("resolved", False):
        for name, value in (("backbone", backbone), ("recipe", recipe)):
            if value is not None and value != tree.get(name):
                raise ConfigError(f"{path}: a resolved configuration is for {name} {tree.get(name)!r}, not {value!r}")
        return build(merge(tree, overrides), str(path))
    sections = tree.pop("backbones", None) or {}
    if not isinstance(sections, dict) or not all(s is None or isinstance(s, dict) for s in sections.values()):
        raise ConfigError(f"{path}: backbones: expected a mapping of a backbone to its settings")
    name = str(overrides.get("backbone") or backbone or tree.get("backbone") or Config.backbone)
    name = ALIASES.get(name, name)
    if name not in BACKBONES:
        raise ConfigError(
            f"backbone: unknown value {name!r}{nearest(name, BACKBONES)}; choices: {', '.join(BACKBONES)}"
        )
    recipe_name = str(overrides.get("recipe") or recipe or tree.get("recipe") or Config.recipe)
    merged = read_tree(shipped("backbone", name))
    chosen = read_tree(shipped("recipes", recipe_name))
    budget, asked = (layer.get("labels", {}).get("budget") for layer in (chosen, overrides))
    if budget is not None and asked is not None and asked != budget:
        raise ConfigError(
            f"labels.budget {asked!r}: the recipe {recipe_name!r} is for the budget {budget!r}; drop --labels"
        )
    for layer in (tree, dict(sections.get(name) or {}), chosen, overrides):
        merged = merge(merged, layer)
    merged["backbone"] = name
    merged["recipe"] = Path(recipe_name).stem if recipe_name.endswith((".yaml", ".yml")) else recipe_name
    return build(merged, str(path))


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
