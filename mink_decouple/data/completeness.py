"""What a download lacks of its benchmark: a part that is short is seldom noticed, and moves the scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping

SHOWN = 3
"""Names of missing scenes that a line shows."""


def lacking(
    found: Mapping[str, int], whole: Mapping[str, int], unit: str, missing: Mapping[str, Collection[str]] | None = None
) -> list[str]:
    """Lines on what is missing; none where all is there.

    Args:
        found: part of the benchmark -> scenes of it in the download.
        whole: part -> scenes of it in the benchmark.
        unit: of a scene, in the plural: "rooms".
        missing: part -> names of the scenes that are missing, where they are known.

    Returns:
        A line for every part that is there in part, and one for all those that are not there at all.
    """
    lines = []
    for part, number in whole.items():
        if 0 < found.get(part, 0) < number:
            names = sorted((missing or {}).get(part, ()))
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            lines.append(
                f"{part}: {found[part]:,} of its {number:,} {unit}" + (f"; not there: {shown}" if names else "")
            )
    absent = [part for part in whole if not found.get(part)]
    return [*lines, f"nothing of {', '.join(absent)}"] if absent else lines
