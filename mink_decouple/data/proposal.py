"""A first configuration and classes for a folder of clouds, from what `survey` saw, each choice with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mink_decouple.data.classes import default_palette
from mink_decouple.data.io_las import LAS
from mink_decouple.data.survey import Look, common

ASPRS = {
    1: "unclassified", 2: "ground", 3: "low_vegetation", 4: "medium_vegetation", 5: "high_vegetation", 6: "building",
    8: "key_point", 9: "water", 10: "rail", 11: "road", 13: "wire_guard", 14: "wire_conductor", 15: "tower",
    16: "wire_connector", 17: "bridge",
}  # fmt: skip
"""Names of the LAS 1.4 specification."""
MEANINGLESS = {0: "never classified", 7: "noise", 12: "overlap", 18: "high noise"}
"""Ids of the specification that are no class."""
RARE = 1e-3
"""Share of the points below which a class is pointed out."""
SPARSE = 0.05
"""Share of labelled points below which the labels to train on are taken for given points, all of them to be used."""
_BUDGETS = {"full": "every label there is", "1%": "of each class and file; 1pt: one point of each"}
_STEPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
_WIDE = 25.0
"""Metres beyond which a cloud is taken for the outdoors."""


@dataclass(frozen=True)
class Proposal:
    """What `init` writes and says.

    Attributes:
        classes: text of classes.yaml.
        config: text of the configuration.
        notes: what the user should look at.
    """

    classes: str
    config: str
    notes: tuple[str, ...]


def propose(looks: Sequence[Look], root: str, classes_file: str) -> Proposal:
    """Classes and a configuration for clouds that were looked at.

    Args:
        looks: at least two, with labels in at least one that can be trained on and one that can be scored.
        root: the folder, as the configuration is to name it.
        classes_file: the same of the classes.

    Raises:
        ValueError: fewer than two files with labels, or fewer than two classes in them.
    """
    labelled = [one for one in looks if one.labels]
    if len(labelled) < 2:
        found = f"{len(labelled)} of {len(looks)} files" if looks else "no file"
        raise ValueError(
            f"{root}: {found} with labels; at least two are needed, one to train on and one to score. Labels are the "
            "classification of LAS files, a column 'label' or 'class' elsewhere; cut a single file into two"
        )
    las = all(one.path.suffix.lower() in LAS for one in labelled)
    kept, ignored = _ids(labelled, las)
    val = _held_out(labelled, kept)
    train = [one for one in labelled if one not in val]
    missing = {
        raw: "in no file of the training split" for raw in kept if not any(raw in (t.labels or {}) for t in train)
    }
    kept = [raw for raw in kept if raw not in missing]
    ignored |= missing
    if len(kept) < 2:
        raise ValueError(f"{root}: {len(kept)} class in the labels; at least two are needed")
    names = {raw: ASPRS.get(raw, f"class_{raw}") if las else f"class_{raw}" for raw in kept}
    given, points = _labelled_points(train, kept), sum(one.points for one in train)
    budget = "full" if given < SPARSE * points else "1%"
    notes = [*_notes(looks, labelled, las, ignored), *_rare(names, labelled)]
    if budget == "full":
        notes.append(f"{given:,} of {points:,} points to train on have a label: all are used (labels.budget full)")
        if (scored := _labelled_points(val, kept)) < SPARSE * sum(one.points for one in val):
            notes.append(f"scores will be of {scored:,} labelled points; a fully labelled file tells more")
    return Proposal(
        _classes_text(names, ignored, labelled, root),
        _config_text(looks, train, val, root, classes_file, budget),
        tuple(notes),
    )


def grid_size(spacing: float) -> float:
    """About one and a half times the spacing, on a round number: neighbours share a cell, thin things survive."""
    wanted = max(1.5 * spacing, 1e-3)
    power = 10.0 ** np.floor(np.log10(wanted))
    steps = np.array([*_STEPS, 10.0]) * power
    return float(f"{steps[np.abs(np.log(steps / wanted)).argmin()]:.3g}")


def _ids(labelled: Sequence[Look], las: bool) -> tuple[list[int], dict[int, str]]:
    """Raw ids that are classes, and those that are not with the reason."""
    ids = sorted({raw for one in labelled for raw in one.labels or {}})
    ignored = {raw: MEANINGLESS[raw] for raw in ids if las and raw in MEANINGLESS}
    ignored |= {raw: "negative" for raw in ids if raw < 0}
    kept = []
    for raw in ids:
        files = sum(raw in (one.labels or {}) for one in labelled)
        if raw in ignored:
            continue
        if files == 1:
            ignored[raw] = "in one file only, so it cannot be both trained and scored"
        else:
            kept.append(raw)
    return kept, ignored


def _held_out(labelled: Sequence[Look], kept: Sequence[int]) -> list[Look]:
    """About a fifth of the files: those with the most classes without which each class still has a training file.

    Of files with as many, those whose labels are not sparse.
    """
    wanted, chosen = max(1, round(len(labelled) / 5)), []  # type: int, list[Look]

    def order(one: Look) -> tuple[int, bool, int]:
        classes = set(one.labels or {}) & set(kept)
        return -len(classes), _labelled_points([one], kept) < SPARSE * one.points, one.points

    for one in sorted(labelled, key=order):
        rest = [o for o in labelled if o is not one and o not in chosen]
        if rest and all(any(raw in (o.labels or {}) for o in rest) for raw in kept):
            chosen.append(one)
        if len(chosen) == wanted:
            return chosen
    return chosen or [min(labelled, key=lambda o: o.points)]


def _labelled_points(looks: Sequence[Look], kept: Sequence[int]) -> int:
    return sum((one.labels or {}).get(raw, 0) for one in looks for raw in kept)


def _notes(looks: Sequence[Look], labelled: Sequence[Look], las: bool, ignored: dict[int, str]) -> list[str]:
    notes = []
    spacings = [one.spacing for one in looks]
    if max(spacings) > 3 * min(spacings) > 0:
        notes.append(f"spacing differs from {min(spacings):.3g} to {max(spacings):.3g} between files: check data.grid")
    if np.median(spacings) > 5 or max(max(one.extent[:2]) for one in looks) > 20_000:
        notes.append(f"points lie {np.median(spacings):.3g} apart: are the coordinates metres? All lengths here are")
    if not las:
        notes.append("names of the classes are not in the files: put them in for class_0, class_1, ...")
    if ignored:
        listed = "; ".join(f"{raw} ({why})" for raw, why in sorted(ignored.items()))
        notes.append(f"ignored ids: {listed}")
    without = [one.path.name for one in looks if not one.labels]
    if without:
        notes.append(f"no labels in {', '.join(without[:5])}{' ...' * (len(without) > 5)}: in no split, predict them")
    return notes


def _rare(names: dict[int, str], labelled: Sequence[Look]) -> list[str]:
    total = sum(one.points for one in labelled)
    share = {raw: sum((one.labels or {}).get(raw, 0) for one in labelled) / total for raw in names}
    rare = [f"{names[raw]} {part:.2%}" for raw, part in share.items() if part < RARE]
    return [f"very rare: {', '.join(rare)}; a class that means nothing belongs under ignore"] if rare else []


def _classes_text(names: dict[int, str], ignored: dict[int, str], labelled: Sequence[Look], root: str) -> str:
    total = sum(one.points for one in labelled)
    lines = [f"# Classes of {root}: name, ids in the files, colour. The order is that of the ids inside.", "classes:"]
    for number, (raw, name) in enumerate(names.items()):
        count = sum((one.labels or {}).get(raw, 0) for one in labelled)
        files = sum(raw in (one.labels or {}) for one in labelled)
        color = default_palette(number + 1)[-1].tolist()
        lines.append(f"  {name}: {{raw: [{raw}], color: {color}}}  # {count / total:.2%} of the points, {files} files")
    lines.append(f"ignore: {sorted(ignored)}")
    lines += [f"#   {raw}: {why}" for raw, why in sorted(ignored.items())]
    return "\n".join(lines) + "\n"


def _config_text(
    looks: Sequence[Look], train: Sequence[Look], val: Sequence[Look], root: str, classes: str, budget: str
) -> str:
    spacing = float(np.median([one.spacing for one in looks]))
    grid, columns = grid_size(spacing), common(looks)
    outdoors = max(max(one.extent[:2]) for one in looks) > _WIDE
    features, factors, why = _features(columns, outdoors)
    cells = max(int(one.points / max(1.0, (grid / max(one.spacing, 1e-6)) ** 2)) for one in looks)
    crops = cells > 60_000
    rare = f"{len(columns)} columns that every file has: {', '.join(columns) or 'none'}"
    head = f"""# {root}: {len(looks)} files, a first configuration to change at will. Every key: docs/settings.md.
# What the recipe states wins over this file, and --set over both; a run says what that concerns.
#   mink-decouple check --config THIS
#   mink-decouple train --config THIS
recipe: {"outdoor" if outdoors else "decoupled"}
labels: {{budget: "{budget}", unit: raw}}  # {_BUDGETS[budget]}
data:
  dataset: folder
  root: {_quoted(root)}
  classes: {_quoted(classes)}
  splits:  # a fifth of the files is scored, chosen so that every class stays in the training files
    train: [{", ".join(_quoted(one.path.stem) for one in train)}]
    val: [{", ".join(_quoted(one.path.stem) for one in val)}]
  grid: {grid:g}  # metres; points lie {spacing:.3g} apart
  height: {"ground  # above the local ground" if outdoors else "floor  # above the lowest points"}
  features: [{", ".join(features)}]  # of {rare}
"""
    if factors:
        head += f"  factors: {{{', '.join(f'{k}: {v:g}' for k, v in factors.items())}}}  # bring {why} near 1\n"
    if outdoors:
        head += "augment: {rotate_z: {}, flip: {}, scale: {low: 0.9, high: 1.1}, jitter: {sigma: 0.02, clip: 0.1}"
    else:
        head += "augment: {rotate_z: {}, flip: {}, scale: {low: 0.9, high: 1.1}, jitter: {sigma: 0.005, clip: 0.02}"
    if "rgb" in features:
        head += ",\n  colour_contrast: {}, colour_shift: {amount: 0.1}, drop_colour: {probability: 0.2}"
    head += f"""}}
optim: {{name: adamw, weight_decay: 1.0e-2}}
schedule:  # minutes to an hour on a CPU; longer is better: raise pretrain.epochs
  policy: cosine
  iterations: 1
  i_step: {{lr: 1.0e-3}}
  ii_step: {{epochs: 20, lr: 1.0e-3}}
loss: {{seg_norm: split, class_weight: none}}
pseudo: {{floor: 0.5, votes: 4}}
ii: {{cache_passes: 2}}
view: {{shape: {"column" if outdoors else "sphere"}, batch: 2, center_noise: {2.0 if outdoors else 0.35:g}}}
backbones:
  minkunet:
    model: {{variant: tiny}}  # 14A, 18A, 34C are wider
    view: {{crop_points: {24_000 if crops else 0}}}  # {"grid points of a crop" if crops else "0: whole scenes"}
    schedule: {{pretrain: {{epochs: 40, lr: 5.0e-3}}, i_step: {{epochs: 20}}}}
  randla:
    view: {{crop_points: 8192, batch: 1}}
    pseudo: {{votes: 2}}
    schedule: {{pretrain: {{epochs: 30, lr: 1.0e-2}}, i_step: {{epochs: 10}}}}
"""
    return head


def _features(columns: Sequence[str], outdoors: bool) -> tuple[list[str], dict[str, float], str]:
    features = ["height"]
    factors: dict[str, float] = {}
    if "rgb" in columns:
        features.insert(0, "rgb")
    if outdoors:
        features.append("height_wide")
        factors |= {"height": 0.2, "height_wide": 0.2}
    if "intensity" in columns:
        features.append("log_intensity")
    if "remission" in columns:
        features.append("remission")
    for name in ("return_number", "number_of_returns"):
        if name in columns and outdoors:
            features.append(name)
            factors[name] = 0.2
    return features, factors, ", ".join(factors)


def _quoted(text: str) -> str:
    """A YAML scalar that is text whatever it looks like."""
    return "'" + text.replace("'", "''") + "'"
