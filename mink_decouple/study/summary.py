"""An experiment's figures: one table of means and spreads over seeds, and paired differences from the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from mink_decouple.study.grid import Cell
from mink_decouple.study.launch import Outcome

SCORES = ("miou", "head_iou", "waist_iou", "tail_iou")
Finished = Sequence[tuple[Cell, Outcome]]


def table(finished: Finished, reference: str | None = None) -> Iterator[str]:
    """Markdown: a row for each backbone, budget and title, in the order of their first run.

    Scores are percent, mean ± sample deviation over seeds. With a `reference`, the last two columns are the mean
    difference from it over the seeds that both have, mIoU and tail IoU.
    """
    head = ["backbone", "labels", "recipe", "mIoU", "head", "waist", "tail", "pre-trained mIoU", "seeds"]
    head += [f"mIoU - {reference}", f"tail - {reference}"] if reference else []
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    groups = list(dict.fromkeys(cell.group for cell, _ in finished))
    for group in groups:
        runs = {cell.config.seed: found.metrics for cell, found in finished if cell.group == group}
        columns = [[_percent(run.get(score)) for run in runs.values()] for score in SCORES]
        columns.append([_percent(run["pretrained"]["miou"]) for run in runs.values()])
        row = [*group, *map(spread, columns), str(len(runs))]
        if reference:
            others = {
                cell.config.seed: found.metrics
                for cell, found in finished
                if cell.group == (group[0], group[1], reference)
            }
            row += (
                [difference(runs, others, score) for score in ("miou", "tail_iou")]
                if group[2] != reference
                else [
                    "",
                    "",
                ]
            )
        yield f"| {' | '.join(row)} |"


def spread(values: Sequence[float | None]) -> str:
    """Mean and sample deviation, `12.3 ± 0.4`; one value alone, or "-" without any."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.1f} ± {stdev(known):.1f}" if len(known) > 1 else f"{known[0]:.1f}"


def difference(runs: dict, others: dict, score: str) -> str:
    """`+1.2 ± 0.4`: mean and sample deviation of run minus reference over common seeds; "-" without any."""
    pairs = [(_percent(runs[seed].get(score)), _percent(others[seed].get(score))) for seed in runs if seed in others]
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    if not gaps:
        return "-"
    return f"{mean(gaps):+.1f} ± {stdev(gaps):.1f}" if len(gaps) > 1 else f"{gaps[0]:+.1f}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
