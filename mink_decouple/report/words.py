"""A comparison in words, made from its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mink_decouple.report.page import paragraph
from mink_decouple.report.records import Record
from mink_decouple.report.statistics import LEVEL, Paired, Setting, by_seed, compared, holm, mean_of, paired

BACKBONES = {"minkunet": "MinkUNet", "randla": "RandLA-Net"}


def listed(names: Sequence[str], most: int = 4) -> str:
    """`a`, `a and b`, `a, b and 3 others`."""
    shown = list(names) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} others"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def summary(groups: Mapping[Setting, Sequence[Record]], reference: str, asked: bool = True) -> str:
    """Paragraphs: what was compared, and for each budget and backbone who leads, by how much, how surely.

    Args:
        groups: runs by setting.
        reference: title that the others are compared with.
        asked: whether a user named it.
    """
    runs = [record for found in groups.values() for record in found]
    seeds = sorted({record.seed for record in runs})
    counted = sorted({record.metrics["classes_counted"] for record in runs if "classes_counted" in record.metrics})
    first = f"{len(runs)} runs of {len(groups)} settings on {runs[0].dataset}, seeds {', '.join(map(str, seeds))}."
    if counted:
        first += f" mIoU is the mean over {' to '.join(map(str, dict.fromkeys((counted[0], counted[-1]))))} classes."
    first += " Scores are percent on every raw point of the evaluation split, by the last network of a run."
    if len({setting[2] for setting in groups}) > 1:
        first += f" The others are compared with {reference}{'' if asked else ', the default (--reference)'}."
    lines = [paragraph(text) for text in (first, *budgets(runs), *mixed(groups))]
    for labels, backbone in dict.fromkeys(setting[:2] for setting in groups):
        lines.append(paragraph(_verdict(groups, labels, backbone, reference)))
    return "".join(lines)


def budgets(runs: Sequence[Record]) -> list[str]:
    """A sentence for each label budget: how many points it labels."""
    lines = []
    for labels in dict.fromkeys(record.labels for record in runs):
        found = [record.label_budget for record in runs if record.labels == labels]
        counts = sorted({budget["labelled"] for budget in found if "labelled" in budget})
        raw, view = (
            [budget[key] for budget in found if budget.get(key) is not None]
            for key in ("share_of_raw", "share_of_view")
        )
        if counts and raw:
            span = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
            grid = f" and {100 * max(view):.3g} % of the grid points, which the network sees," if view else ""
            text = f"Budget {labels}: {span} labelled points, {100 * max(raw):.3g} % of the raw points{grid} or less."
            lines.append(text + _same_points([record for record in runs if record.labels == labels]))
    return lines


def _same_points(runs: Sequence[Record]) -> str:
    """Whether the runs of a seed have the same labelled points, by the checksums of their label sets."""
    seen: dict[int, list[tuple[str, str]]] = {}
    for record in runs:
        if "checksum" in record.label_budget:
            name = BACKBONES.get(record.backbone, record.backbone)
            seen.setdefault(record.seed, []).append((record.label_budget["checksum"], name))
    several = [set(found) for found in seen.values() if len(found) > 1]
    if not several:
        return ""
    if all(len({checksum for checksum, _ in found}) == 1 for found in several):
        return " All runs of a seed have the same ones."
    if all(len({name for _, name in found}) == len(found) for found in several):
        backbones = dict.fromkeys(name for found in several for _, name in sorted(found, key=lambda one: one[1]))
        return f" Those of {listed(list(backbones))} are not the same."
    return " Not all runs of a seed have the same ones."


def mixed(groups: Mapping[Setting, Sequence[Record]]) -> list[str]:
    """A sentence for each setting whose runs have different digests: a mean over them may be of no one experiment."""
    lines = []
    for (labels, backbone, title), runs in groups.items():
        seeds: dict[str, list[str]] = {}
        for record in runs:
            seeds.setdefault(record.digest, []).append(str(record.seed))
        if len(seeds) > 1:
            told = "; ".join(f"{', '.join(found)}: {digest}" for digest, found in seeds.items())
            lines.append(
                f"{BACKBONES.get(backbone, backbone)} at {labels}, {title}: the settings of its seeds differ "
                f"({told}), perhaps in paths alone; their config.yaml tells."
            )
    return lines


def sureness(gap: Paired, corrected: float | None, tests: int) -> str:
    """How sure a difference is.

    Args:
        gap: the difference.
        corrected: its p by `statistics.holm`; None where it has no p.
        tests: number of tests that p was corrected for.
    """
    if gap.p is None or corrected is None:
        return "one seed, so its chance is unknown"
    verdict = "beyond chance" if corrected < 1 - LEVEL else "within chance"
    told = f"p = {gap.p:.2g}" + (f", by Holm's correction for {tests} tests {corrected:.2g}" if tests > 1 else "")
    few = ", of which so few tell only large differences" if gap.pairs < 5 else ""
    return f"{verdict} by a paired t-test ({told}) over {gap.pairs} seeds{few}"


def chances(groups: Mapping[Setting, Sequence[Record]], reference: str) -> str:
    """A sentence for the table of differences: how many p there are, and how many are small by chance; "" for one."""
    ours, tail = (
        sum(gap.p is not None for gap in compared(groups, score, reference).values()) for score in ("miou", "tail_iou")
    )
    if ours + tail < 2:
        return ""
    return (
        f" These are {ours + tail} comparisons: where nothing differs, about {(ours + tail) / 20:.2g} of so many p "
        f"fall below 0.05 by chance. The words above correct the {ours} of mIoU for their number by Holm's method."
    )


def _verdict(groups: Mapping[Setting, Sequence[Record]], labels: str, backbone: str, reference: str) -> str:
    here = {setting[2]: runs for setting, runs in groups.items() if setting[:2] == (labels, backbone)}
    means = {title: mean_of(list(by_seed(runs, "miou").values())) for title, runs in here.items()}
    known = {title: value for title, value in means.items() if value is not None}
    name = BACKBONES.get(backbone, backbone)
    if not known:
        return f"{name} at {labels}: no score."
    best = max(known, key=lambda title: known[title])
    if len(known) == 1:
        return f"{name} at {labels}: {known[best]:.1f} mIoU by {best}, which nothing is compared with."
    text = f"{name} at {labels}: {best} leads with {known[best]:.1f} mIoU"
    if reference not in known:
        return f"{text}; {reference} was not run."
    tests = {s: gap.p for s, gap in compared(groups, "miou", reference).items() if gap.p is not None}
    other = reference
    if best == reference:
        other = max((title for title in known if title != best), key=lambda title: known[title])
    gap, tail = (paired(by_seed(here[best], score), by_seed(here[other], score)) for score in ("miou", "tail_iou"))
    if gap is None:
        return f"{text}, by other seeds than those of {other}."
    # the test of two does not ask which of them is the reference
    corrected = holm(tests).get((labels, backbone, other if best == reference else best))
    sure = sureness(gap, corrected, len(tests))
    if gap.mean < 0:  # the means above are over all seeds of each, this gap is over those that both have
        return (
            f"{name} at {labels}: {best} has the highest mean, {known[best]:.1f} mIoU, but is {-gap.mean:.1f} below "
            f"{other} over the seeds that both have ({sure})."
        )
    text += f", {gap.mean:+.1f} from {other} ({sure})"
    return text + ("." if tail is None or best == reference else f"; tail IoU {tail.mean:+.1f}.")
