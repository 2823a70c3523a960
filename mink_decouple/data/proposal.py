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
UNLABELLED = (0, 1)
"""Id that annotators leave at points without a label; 1 in LAS files, where it is "unclassified" and 0 no class."""
FEW = 500
"""Labelled points below which a forest that spreads them was measured to help outdoors (docs/results.md)."""
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
        looks: of which at least one has labels. A single one with labels is trained and scored on.
        root: the folder, as the configuration is to name it.
        classes_file: the same of the classes.

    Raises:
        ValueError: no file with labels, or fewer than two classes in them.
    """
    labelled = [one for one in looks if _says_something(one)]
    without = [one for one in looks if not _says_something(one)]
    if not labelled:
        raise ValueError(
            f"{root}: none of {len(looks)} files has labels; at least one is needed, better two. Labels are the "
            "classification of LAS files, a column 'label' or 'class' elsewhere"
        )
    las = all(one.path.suffix.lower() in LAS for one in labelled)
    kept, ignored = _ids(labelled, las)
    for raw in sorted({raw for one in without for raw in one.labels or {}} - set(kept)):
        ignored.setdefault(raw, "stands for 'no label' in files without any other")
    val = _held_out(labelled, kept) if len(labelled) > 1 else []
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
    notes = [*_notes(looks, las, ignored), *_rare(names, labelled)]
    if not val:
        notes.append(f"only {train[0].path.name} has labels: trained and scored on, scores say nothing of other scenes")
    if without:  # what is scored needs labels, so they cannot join a single labelled file that is scored, too
        use = "in train, for pseudo-labels; list fewer to save time" if val else "in no split, predict them"
        listed = ", ".join(one.path.name for one in without[:5]) + " ..." * (len(without) > 5)
        notes.append(f"no labels, or only ids that stand for none, in {listed}: {use}")
    used = given if budget == "full" else _hundredth(train, kept)
    if used < FEW and _outdoors(looks):
        notes.append(f"few labels ({used:,} points): try --recipe forest (docs/results.md)")
    if budget == "1%":
        notes.append("labels.budget 1% uses a hundredth of the labels, to study scarcity; --labels full uses all")
    else:
        notes.append(f"{given:,} of {points:,} points to train on have a label: all are used (labels.budget full)")
        if (scored := _labelled_points(val, kept)) < SPARSE * sum(one.points for one in val):
            notes.append(f"scores will be of {scored:,} labelled points; a fully labelled file tells more")
    return Proposal(
        _classes_text(names, ignored, labelled, root),
        _config_text(looks, [*train, *without] if val else train, val, root, classes_file, budget),
        tuple(notes),
    )


def grid_size(spacing: float) -> float:
    """About one and a half times the spacing, on a round number: neighbours share a cell, thin things survive."""
    wanted = max(1.5 * spacing, 1e-3)
    power = 10.0 ** np.floor(np.log10(wanted))
    steps = np.array([*_STEPS, 10.0]) * power
    return float(f"{steps[np.abs(np.log(steps / wanted)).argmin()]:.3g}")


def _says_something(one: Look) -> bool:
    """Whether a file has labels, and not only ids that stand for none."""
    nothing = {0, 1, *MEANINGLESS} if one.path.suffix.lower() in LAS else {0}
    return any(raw >= 0 and raw not in nothing for raw in one.labels or {})


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
        if files == 1 < len(labelled):
            ignored[raw] = "in one file only, so it cannot be both trained and scored"
        else:
            kept.append(raw)
    raw = UNLABELLED[las]
    if raw in kept:
        of = [one for one in labelled if raw in (one.labels or {})]
        most = _labelled_points(of, [raw]) > (1 - SPARSE) * sum(one.points for one in of)
        if most and len(kept) > 2:  # with two classes it is one of them
            kept.remove(raw)
            ignored[raw] = "nearly all points: taken for 'no label'; give it a class if it is one"
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


def _hundredth(looks: Sequence[Look], kept: Sequence[int]) -> int:
    """Points that the budget 1% draws."""
    counts = [(one.labels or {}).get(raw, 0) for one in looks for raw in kept]
    return sum(max(count // 100, 1) for count in counts if count)


def _outdoors(looks: Sequence[Look]) -> bool:
    return max(max(one.extent[:2]) for one in looks) > _WIDE


def _notes(looks: Sequence[Look], las: bool, ignored: dict[int, str]) -> list[str]:
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
    outdoors = _outdoors(looks)
    features, factors, why = _features(columns, outdoors)
    cells = max(int(one.points / max(1.0, (grid / max(one.spacing, 1e-6)) ** 2)) for one in looks)
    crops = cells > 60_000
    rare = f"{len(columns)} columns that every file has and that vary: {', '.join(columns) or 'none'}"
    splits = "a fifth of the files is scored, chosen so that every class stays in the training files"
    scored = f"    val: [{', '.join(_quoted(one.path.stem) for one in val)}]"
    if not val:
        splits, scored = "one file with labels", "  eval_split: train  # scores say nothing of other scenes"
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
  splits:  # {splits}
    train: [{", ".join(_quoted(one.path.stem) for one in train)}]
{scored}
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
