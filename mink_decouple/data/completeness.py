"""What a download lacks of its benchmark: a count that is short is seldom noticed, and moves every score."""

from __future__ import annotations

from collections.abc import Mapping


def lacking(found: Mapping[str, int], whole: Mapping[str, int], unit: str) -> list[str]:
    """Lines on what is missing; none where all is there.

    Args:
        found: part of the benchmark -> scenes of it in the download.
        whole: part -> scenes of it in the benchmark.
        unit: of a scene, in the plural: "rooms".

    Returns:
        A line for every part that is there in part, and one for all those that are not there at all.
    """
    lines = [
        f"{part}: {found[part]:,} of its {number:,} {unit}"
        for part, number in whole.items()
        if 0 < found.get(part, 0) < number
    ]
    absent = [part for part in whole if not found.get(part)]
    return [*lines, f"nothing of {', '.join(absent)}"] if absent else lines
