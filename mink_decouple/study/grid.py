"""An experiment's file: recipes x backbones x label budgets x seeds, expanded to the configuration of every run."""

from __future__ import annotations

import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mink_decouple.config import ALIASES, BACKBONES, Config, configs_dir, load_config, merge, read_tree, shipped
from mink_decouple.typed import ConfigError, nearest, record, setting

GRID = {"seed": "seeds", "backbone": "backbones", "recipe": "recipes", "labels.budget": "labels"}
"""Settings of a run that the grid decides, and the key of the experiment that they come from."""


@dataclass(frozen=True)
class Variant:
    """One entry of `recipes`: a recipe, with settings of its own beside it where `set` holds any."""

    title: str = ""  # what it is called in tables; the recipe's name unless given
    recipe: str = "decoupled"
    set: dict[str, Any] = setting({})  # a.b: value, or nested mappings
    labels: list[str] | None = None  # budgets of this entry alone; None: those of the experiment


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment's file; docs/experiments.md explains each key."""

    title: str = ""
    config: str = ""  # beside the experiment's file; empty: the synthetic buildings
    backbones: list[str] = setting(list(BACKBONES))
    labels: list[str] = setting(["1pt"])
    seeds: list[int] = setting([0, 1, 2])
    recipes: list[Any] = setting([])  # names or mappings in the file, each a Variant once it is read
    set: dict[str, Any] = setting({})
    backbone_set: dict[str, Any] = setting({})
    reference: str | None = None  # title that the others are compared with
    jobs: int | None = setting(None, low=1)  # trainings at once; None: as many as the machine allows


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        title: of its recipe or variant; also `config.recipe`.
        config: everything the run depends on.
    """

    title: str
    config: Config

    @property
    def group(self) -> tuple[str, str, str]:
        """Backbone, label budget and title: what the seeds of one row of a table share."""
        return self.config.backbone, self.config.labels.budget, self.title

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        text = "-".join((*self.group, f"seed{self.config.seed}")).replace("%", "pct")
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


def read_experiment(path: Path) -> Experiment:
    """The experiment of a file.

    Raises:
        FileNotFoundError, ConfigError: no such file; every unknown key and wrong value, one line each.
    """
    tree = read_tree(path)
    errors: list[str] = []
    read = typing.cast(Experiment | None, record(Experiment, tree, "", errors))
    variants: list[Variant] = []
    for number, entry in enumerate(read.recipes if read is not None else []):
        asked = {"recipe": entry} if isinstance(entry, str) else entry
        variant = typing.cast(Variant | None, record(Variant, asked, f"recipes.{number}.", errors))
        if variant is not None:
            variants.append(variant if variant.title else replace(variant, title=variant.recipe))
    titles = [variant.title for variant in variants]
    errors += [f"recipes: two are called {title!r}; give one another `title`" for title in _repeated(titles)]
    if read is not None:
        for key, values in (("backbones", read.backbones), ("labels", read.labels), ("seeds", read.seeds)):
            errors += [f"{key}: empty; at least one is needed"] * (not values)
            errors += [f"{key}: {value!r} stands there twice" for value in _repeated(values)]
        errors += ["recipes: empty; at least one is needed"] * (not read.recipes)
        sets = {"set": read.set, **{f"backbone_set.{name}": inner or {} for name, inner in read.backbone_set.items()}}
        sets |= {f"recipes.{number}.set": variant.set for number, variant in enumerate(variants)}
        for where, tree in sets.items():
            errors += [f"{where}: {line}" for line in _of_the_grid(nested(tree))]
        for name in (*read.backbones, *read.backbone_set):
            if ALIASES.get(name, name) not in BACKBONES:
                near = nearest(name, BACKBONES)
                errors.append(f"backbone: unknown value {name!r}{near}; choices: {', '.join(BACKBONES)}")
        if read.reference is not None and titles and read.reference not in titles:
            near = nearest(read.reference, titles)
            errors.append(f"reference: unknown title {read.reference!r}{near}; choices: {', '.join(titles)}")
    if errors or read is None:
        raise ConfigError("\n".join(f"{path}: {line}" for line in errors))
    return replace(read, recipes=variants)


def expand(experiment: Experiment, path: Path, overrides: dict[str, Any] | None = None) -> list[Cell]:
    """Every run of an experiment, each configuration checked; seed by seed.

    An unfinished study so compares every recipe already.

    Args:
        experiment: what `read_experiment` returned.
        path: its file, which `config` is relative to.
        overrides: nested settings that win over the file's.

    Raises:
        ConfigError: every wrong setting of every cell, each message once; overrides of what the grid decides.
    """
    taken = _of_the_grid(overrides or {})
    if taken:
        raise ConfigError("\n".join(f"--set {line}" for line in taken))
    source = path.parent / experiment.config if experiment.config else configs_dir() / "synthetic.yaml"
    cells: list[Cell] = []
    errors: dict[str, None] = {}
    for seed in experiment.seeds:
        for backbone in experiment.backbones:
            backbone = ALIASES.get(backbone, backbone)
            for variant in experiment.recipes:
                for budget in _budgets(variant, experiment):
                    settings = nested(experiment.set)
                    settings = merge(settings, nested(experiment.backbone_set.get(backbone) or {}))
                    settings = merge(merge(settings, nested(variant.set)), overrides or {})
                    settings = merge(settings, {"seed": seed})
                    settings = settings if budget is None else merge(settings, {"labels": {"budget": budget}})
                    try:
                        config = load_config(source, backbone=backbone, recipe=variant.recipe, overrides=settings)
                    except ConfigError as error:
                        errors |= {f"{variant.title}: {line}": None for line in str(error).splitlines()}
                        continue
                    cells.append(Cell(variant.title, replace(config, recipe=variant.title)))
    if errors:
        raise ConfigError("\n".join(errors))
    return cells


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": c}` as `{"a": {"b": c}}`; mappings within are merged."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        value = nested(value) if isinstance(value, dict) else value
        for part in reversed(str(key).split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def _of_the_grid(settings: dict[str, Any]) -> list[str]:
    """A line for each of nested settings that the grid would silently replace, or give a false title."""
    labels = settings.get("labels")
    flat = {
        **settings,
        **({f"labels.{key}": value for key, value in labels.items()} if isinstance(labels, dict) else {}),
    }
    return [f"{key} is a key of the experiment itself: {own}" for key, own in GRID.items() if key in flat]


def _budgets(variant: Variant, experiment: Experiment) -> list[str | None]:
    """Budgets of a variant: its own, that of its recipe (None: nothing to set), or the experiment's."""
    if variant.labels is not None:
        return [*variant.labels]
    fixed = (read_tree(shipped("recipes", variant.recipe)).get("labels") or {}).get("budget")
    return [*experiment.labels] if fixed is None else [None]


def _repeated(values: list[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value in values[:number]]
