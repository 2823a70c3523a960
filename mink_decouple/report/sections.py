"""The sections of a comparison: each takes the runs by setting, and says so where they cannot fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean

import numpy as np

from mink_decouple.data.classes import Classes
from mink_decouple.metrics import GROUPS
from mink_decouple.report import charts, page, scenes
from mink_decouple.report.figures import UNLABELLED
from mink_decouple.report.page import Cell
from mink_decouple.report.records import Record
from mink_decouple.report.statistics import Setting, by_seed, compared, deviation_of, mean_of
from mink_decouple.report.words import BACKBONES, chances

Groups = Mapping[Setting, Sequence[Record]]
Runs = Sequence[tuple[Record, Path]]
"""Those that still have a folder, and it."""
Places = Mapping[Setting, Runs]
SCORES = {"miou": "mIoU", "head_iou": "head", "waist_iou": "waist", "tail_iou": "tail", "oa": "OA"}
MOST_ROOMS = 6
"""Settings whose prediction of a room is drawn."""


def name_of(setting: Setting) -> str:
    """`title, backbone, budget` for legends and captions."""
    labels, backbone, title = setting
    return f"{title}, {BACKBONES.get(backbone, backbone)}, {labels}"


def main_section(groups: Groups, reference: str) -> str:
    """Mean ± sample deviation of every score, and the paired difference from the reference."""
    headers = ["labels", "backbone", "setting", *SCORES.values(), "pre-trained", "seeds"]
    headers += [f"mIoU − {reference}", "p", f"tail − {reference}", "p"]
    best = _best(groups)
    gaps = [compared(groups, score, reference) for score in ("miou", "tail_iou")]
    rows: list[list[str | Cell]] = []
    for setting, runs in groups.items():
        labels, backbone, title = setting
        row: list[str | Cell] = [labels, BACKBONES.get(backbone, backbone), title]
        for score in SCORES:
            values = list(by_seed(runs, score).values())
            row.append(Cell(spread(values), best=score == "miou" and setting in best))
        first = [100 * r.metrics["pretrained"]["miou"] for r in runs if r.metrics.get("pretrained", {}).get("miou")]
        row += [spread(first), str(len(runs))]
        for found in gaps:
            gap = found.get(setting)
            if gap is None:
                row += ["", ""]
            elif gap.p is None:
                row += [f"{gap.mean:+.1f}", ""]
            else:
                row += [f"{gap.mean:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})", f"{gap.p:.2g}"]
        rows.append(row)
    note = (
        "Percent, mean ± sample deviation over seeds; the best mIoU of a budget and backbone is underlined. "
        "Pre-trained is the mIoU at the end of the pre-training. "
        "Differences are means over common seeds with a 95 % interval. Head, waist and tail are thirds of the classes "
        "by frequency."
    )
    note += chances(groups, reference)
    return page.paragraph(note) + page.table(headers, rows, text=3, sortable=True)


def classes_section(groups: Groups) -> str:
    """IoU of each class, mean over seeds, the most frequent class first."""
    some = next(iter(groups.values()))[0]
    order = [c for group in GROUPS for c in some.groups.get(group, ())] or list(range(len(some.classes)))
    group_of = {c: group for group in GROUPS for c in some.groups.get(group, ())}
    headers = ["setting", *(some.classes[c] + (f" ({group_of[c]})" if c in group_of else "") for c in order)]
    table = {
        setting: [
            mean_of([100 * value for r in runs if (value := r.metrics["iou"].get(some.classes[c])) is not None])
            for c in order
        ]
        for setting, runs in groups.items()
    }
    columns = zip(*table.values(), strict=True)
    tops = [max((value for value in column if value is not None), default=None) for column in columns]
    rows: list[list[str | Cell]] = [
        [
            name_of(setting),
            *(
                Cell("-") if value is None else Cell(f"{value:.1f}", best=value == top, tint=value / 100)
                for value, top in zip(values, tops, strict=True)
            ),
        ]
        for setting, values in table.items()
    ]
    note = page.paragraph("IoU in percent, mean over seeds; the best of a class is underlined.")
    return note + page.table(headers, rows)


def curves_section(groups: Groups) -> str:
    """Curves of every budget and backbone."""
    parts = []
    for labels, backbone in dict.fromkeys(setting[:2] for setting in groups):
        here = {s[2]: runs for s, runs in groups.items() if s[:2] == (labels, backbone)}
        several = {
            title: runs
            for title, runs in here.items()
            if all(sum(line["event"] == "evaluation" for line in r.history) > 1 for r in runs)
        }
        if several:
            where = f"{BACKBONES.get(backbone, backbone)}, {labels}"
            classes = next(iter(several.values()))[0].classes
            words = f"IoU of each class over evaluations, {where}"
            drawn = page.drawing(charts.iou_curves(several, classes), words, wide=True)
            parts.append(f"<h3>{escape(where)}</h3>{drawn}")
    if not parts:
        return page.missing("No run was scored more than once.")
    note = (
        "IoU in percent at each evaluation: after the pre-training (0), then after each iteration, or each epoch where "
        "the run says so; means over seeds. A band is the sample deviation over seeds; more than "
        f"{charts.MOST_BANDS} settings have none."
    )
    return page.paragraph(note) + "".join(parts)


def pseudo_labels_section(groups: Groups) -> str:
    """Counts, precision and recall of every setting that makes pseudo-labels."""
    parts = []
    for setting, runs in groups.items():
        if all(any(line["event"] == "pseudo_labels" for line in r.history) for r in runs):
            name = f"{name_of(setting)}, {charts.seeds(len(runs))}"
            words = f"pseudo-labels of each class by iteration, {name}"
            drawn = page.drawing(charts.pseudo_label_chart(runs, runs[0].classes), words, wide=True)
            parts.append(page.folded(name, drawn + _pseudo_label_table(runs)))
    if not parts:
        return page.missing("No run makes pseudo-labels.")
    note = (
        "Grid points of the training set that are given a pseudo-label each time they are made, which is every "
        "iteration unless the run asks for every epoch (bars, mean over seeds), and how "
        "many of them are right and how much of the hidden truth they cover (lines, right axis, 0 to 1)."
    )
    return page.paragraph(note) + "".join(parts)


def _pseudo_label_table(runs: Sequence[Record]) -> str:
    lines = [[line for line in r.history if line["event"] == "pseudo_labels"] for r in runs]
    length = min(map(len, lines))
    headers = ["class", *(f"{what}, time {i}" for i in range(length) for what in ("labels", "precision", "recall"))]
    rows = []
    for name in runs[0].classes:
        row = [name]
        for i in range(length):
            here = [found[i] for found in lines]
            row.append(f"{mean(line['certain'].get(name, 0) + line['uncertain'].get(name, 0) for line in here):,.0f}")
            for key in ("precision", "recall"):
                known = [line[key][name] for line in here if line.get(key, {}).get(name) is not None]
                row.append(f"{100 * mean(known):.0f}" if known else "-")
        rows.append(row)
    return page.table(headers, rows)


def confusion_section(groups: Groups) -> str:
    """Confusion matrices, summed over seeds."""
    parts = []
    for setting, runs in groups.items():
        found = [np.asarray(r.metrics["confusion"]) for r in runs if "confusion" in r.metrics]
        if found:
            name = f"{name_of(setting)}, {charts.seeds(len(found))}"
            uri = charts.confusion_chart(np.sum(found, axis=0), runs[0].classes, name)
            parts.append(page.image(uri, f"confusion matrix, {name}"))
    if not parts:
        return page.missing("No run holds a confusion matrix.")
    return page.folded(f"{len(parts)} matrices, rows in percent of the true class", "".join(parts))


def cost_section(groups: Groups) -> str:
    """Seconds by kind of stage, memory, parameters; accuracy over time."""
    kinds = {"pre-training": "pretrain", "I-steps": "_I", "II-steps": "_II", "pseudo-labels": "_pseudo_labels"}
    headers = ["setting", *kinds, "scoring", "in all", "peak memory, MiB", "parameters", "mIoU", "device, threads"]
    rows, points = [], {}
    for setting, runs in groups.items():
        sums = [_by_kind(r.cost["seconds"], list(kinds.values())) for r in runs]
        row = [name_of(setting), *(f"{mean(s[kind] for s in sums):,.0f}" for kind in [*kinds.values(), "evaluation"])]
        total = mean(sum(r.cost["seconds"].values()) for r in runs)
        memory = [r.cost["peak_memory_mib"] for r in runs if r.cost.get("peak_memory_mib")]
        score = mean_of(list(by_seed(runs, "miou").values()))
        where = dict.fromkeys(f"{r.cost.get('device')}, {r.cost.get('threads')}" for r in runs)
        row += [f"{total:,.0f}", f"{mean(memory):,.0f}" if memory else "-", f"{sum(runs[0].parameters.values()):,}"]
        row += ["-" if score is None else f"{score:.1f}", "; ".join(where)]
        rows.append(row)
        if score is not None and total > 0:
            points[name_of(setting)] = (total / 60, score)
    note = "Seconds, mean over seeds. Times compare only where device and threads agree and nothing else ran beside."
    drawn = page.drawing(charts.cost_chart(points), "mIoU over minutes of training") if points else ""
    return page.paragraph(note) + page.table(headers, rows, sortable=True) + drawn


def _by_kind(seconds: Mapping[str, float], kinds: Sequence[str]) -> dict[str, float]:
    found = dict.fromkeys([*kinds, "evaluation"], 0.0)
    for name, value in seconds.items():
        kind = next((k for k in ("_pseudo_labels", "_II", "_I", "_joint") if name.endswith(k)), name)
        kind = "_I" if kind == "_joint" else kind
        found[kind if kind in found else "evaluation"] += value
    return found


def pseudo_label_maps_section(groups: Groups, places: Places) -> str:
    """A training scene of one run of each setting."""
    parts = []
    for setting, runs in places.items():
        for record, folder in runs[:1]:
            for scene, arrays in scenes.arrays_of(folder, "views").items():
                if any(key.endswith("_label") for key in arrays):
                    panels = scenes.pseudo_label_panels(arrays, classes_of(record))
                    name = f"{name_of(setting)}, seed {record.seed}, {scene}"
                    parts.append(page.folded(name, _figures(panels, scene)))
    if not parts:
        return page.missing("Only run folders hold pseudo-labels of a scene; records do not.")
    return _legend(groups, unlabelled=True) + "".join(parts)


def rooms_section(groups: Groups, places: Places) -> str:
    """One evaluation scene as each setting predicts it, by a seed that all of them have where there is one."""
    parts, unlabelled = [], False
    for labels, backbone in dict.fromkeys(setting[:2] for setting in groups):
        here = [setting for setting in groups if setting[:2] == (labels, backbone)]
        views, scene = _room({s: runs for s in here if (runs := _pictured(places[s]))})
        unlabelled |= any(bool((view["truth"] < 0).any()) for view in views.values())
        if views:
            where = f"{BACKBONES.get(backbone, backbone)}, {labels}, {scene}"
            left = len(here) - len(views)
            note = f"{left} of {len(here)} settings are left out: at most {MOST_ROOMS} are drawn, from run folders."
            drawn = _figures(scenes.room_panels(views, classes_of(groups[here[0]][0])), scene)
            parts.append(page.folded(where, page.paragraph(note) * (left > 0) + drawn))
    if not parts:
        return page.missing("Only run folders hold predictions of a scene; records do not.")
    return _legend(groups, unlabelled) + "".join(parts)


def _room(places: Places) -> tuple[dict[str, scenes.Arrays], str]:
    """`title, seed` -> arrays of one evaluation scene, of up to `MOST_ROOMS` settings; and the name of the scene."""
    shown = list(places.items())[:MOST_ROOMS]
    common = set.intersection(*({record.seed for record, _ in runs} for _, runs in shown)) if shown else set()
    views: dict[str, scenes.Arrays] = {}
    name, points = "", 0
    for setting, runs in shown:
        record, folder = next((run for run in runs if run[0].seed == min(common, default=None)), runs[0])
        for scene, arrays in scenes.arrays_of(folder, "views").items():
            if "final" in arrays and (not views or (scene, len(arrays["final"])) == (name, points)):
                views[f"{setting[2]}, seed {record.seed}"] = arrays
                name, points = scene, len(arrays["final"])
    return views, name


def _pictured(runs: Runs) -> Runs:
    return [run for run in runs if (run[1] / "views").is_dir()]


def features_section(places: Places, method: str) -> str:
    """Features of the training scene of one run of each setting, at the begin, the middle and the end."""
    parts = []
    for setting, runs in places.items():
        for record, folder in runs[:1]:
            found = scenes.arrays_of(folder, "features")
            order = [line["stage"] for line in record.history if line["event"] == "evaluation" and "epoch" not in line]
            for scene, arrays in found.items():
                stages = [stage for stage in dict.fromkeys(order) if stage in arrays]
                if not stages or not (arrays["visible"] >= 0).any():
                    continue
                picked = [stages[i] for i in sorted({0, len(stages) // 2, len(stages) - 1})]
                uri, shown = scenes.projection(arrays, picked, classes_of(record), record.groups, method)
                name = f"{name_of(setting)}, seed {record.seed}, {scene}"
                words = f"features in two dimensions after {', '.join(picked)}; coloured: {', '.join(shown)}"
                parts.append(page.folded(name, page.image(uri, words)))
    if not parts:
        return page.missing("Only run folders hold features; records do not.")
    kind = "t-SNE" if method == "tsne" else "principal components"
    note = (
        f"What the classifier sees of the points of a training scene, by {kind}: a frequent class and the two rarest "
        "in colour, all others grey, given labels ringed. Places and distances of far groups mean nothing."
    )
    return page.paragraph(note) + "".join(parts)


def origin_section(groups: Groups) -> str:
    """Seeds, settings, versions and machines."""
    runs = [record for found in groups.values() for record in found]
    rows = []
    for setting, found in groups.items():
        digests = ", ".join(dict.fromkeys(record.digest for record in found))
        rows.append([name_of(setting), found[0].recipe, ", ".join(str(r.seed) for r in found), digests])
    lines = [page.table(["setting", "recipe", "seeds", "settings' digest"], rows, text=4)]
    for what, key in (("Commits", "commit"), ("Devices", "device"), ("Processors", "processor")):
        values = dict.fromkeys(str(r.cost.get(key)) for r in runs if r.cost.get(key))
        lines += [page.paragraph(f"{what}: {', '.join(values)}.")] if values else []
    versions = dict.fromkeys(f"{name} {v}" for r in runs for name, v in (r.cost.get("versions") or {}).items() if v)
    lines.append(page.paragraph(f"Versions: {', '.join(sorted(versions))}."))
    lines.append(
        page.paragraph(
            "A run is repeated by tools/train.py --config RUN/config.yaml, which holds all of its settings; the whole "
            "grid by tools/experiment.py with the file of the experiment."
        )
    )
    return "".join(lines)


def classes_of(record: Record) -> Classes:
    """Names and palette of a run; without one, evenly spread colours."""
    count = len(record.classes)
    if record.colors is not None:
        colors = np.asarray(record.colors, np.uint8)
    else:
        from matplotlib import colormaps

        colors = np.round(255 * np.asarray(colormaps["turbo"](np.linspace(0.05, 0.95, count)))[:, :3]).astype(np.uint8)
    return Classes(tuple(record.classes), colors, {c: c for c in range(count)}, frozenset())


def spread(values: Sequence[float]) -> str:
    """`12.3 ± 0.4`, `12.3` for one value, `-` for none."""
    middle, deviation = mean_of(values), deviation_of(values)
    if middle is None:
        return "-"
    return f"{middle:.1f}" if deviation is None else f"{middle:.1f} ± {deviation:.1f}"


def _best(groups: Groups) -> set[Setting]:
    """The setting of the highest mean mIoU of each budget and backbone that has several."""
    best = set()
    for kind in dict.fromkeys(setting[:2] for setting in groups):
        scores = {s: mean_of(list(by_seed(runs, "miou").values())) for s, runs in groups.items() if s[:2] == kind}
        known = {s: value for s, value in scores.items() if value is not None}
        if len(known) > 1:
            best.add(max(known, key=lambda s: known[s]))
    return best


def _legend(groups: Groups, unlabelled: bool) -> str:
    some = next(iter(groups.values()))[0]
    colors = classes_of(some).colors.tolist()
    return page.legend([*some.classes, *["no label"] * unlabelled], [*colors, *[UNLABELLED] * unlabelled])


def _figures(panels: Sequence[tuple[str, str]], scene: str) -> str:
    return "".join(page.image(uri, f"{scene}: {caption}", caption) for caption, uri in panels)
