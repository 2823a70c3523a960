"""What each benchmark server wants in a submission: scenes, names of their files, ids.

Sources: ScanNet BenchmarkScripts and its benchmark documentation, semantic3d.net, semantic-kitti-api
`validate_submission.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mink_decouple.data.semantic3d import TEST_PLACES, place
from mink_decouple.data.semantickitti import SEMANTICKITTI

_NYU40 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
_REDUCED = (
    "marketplacefeldkirch_station4",
    "sg27_station10",
    "sg28_station2",
    "stgallencathedral_station6",
)
# Scans of each test sequence; 20,351 together.
_SCANS = {11: 921, 12: 1061, 13: 3281, 14: 631, 15: 1901, 16: 1731, 17: 491, 18: 1801, 19: 4981, 20: 831, 21: 2721}


@dataclass(frozen=True, eq=False)
class Server:
    """One benchmark.

    Attributes:
        name: as in `SERVERS`.
        entry: scene -> its file in the zip, "" for a scene that is not of this benchmark.
        entries: every file that must be there.
        ids: raw ids that a point may have.
        binary: uint32 per point, else one decimal id a line.
        folders: entries of folders that must be there.
        optional: files that may be there.
    """

    name: str
    entry: Callable[[str], str]
    entries: frozenset[str]
    ids: frozenset[int]
    binary: bool = False
    folders: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()


def _scannet(scene: str) -> str:
    return f"{scene}.txt"


def _semantic8(scene: str) -> str:
    at = place(scene)
    return f"{TEST_PLACES[at]}.labels" if at in TEST_PLACES and not _is_reduced(scene) else ""


def _reduced8(scene: str) -> str:
    at = place(scene)
    return f"{TEST_PLACES[at]}-reduced.labels" if at in _REDUCED and _is_reduced(scene) else ""


def _is_reduced(scene: str) -> bool:
    return scene.lower().endswith("-reduced")


def _semantickitti(scene: str) -> str:
    sequence, _, number = scene.partition("_")
    return f"sequences/{sequence}/predictions/{number}.label"


SERVERS = {
    server.name: server
    for server in (
        Server(
            "scannet",
            _scannet,
            frozenset(_scannet(f"scene{number:04d}_00") for number in range(707, 807)),
            frozenset(_NYU40),
        ),
        Server(
            "semantic-8",
            _semantic8,
            frozenset(f"{name}.labels" for name in TEST_PLACES.values()),
            frozenset(range(1, 9)),
        ),
        Server(
            "reduced-8",
            _reduced8,
            frozenset(f"{TEST_PLACES[at]}-reduced.labels" for at in _REDUCED),
            frozenset(range(1, 9)),
        ),
        Server(
            "semantickitti",
            _semantickitti,
            frozenset(_semantickitti(f"{s}_{n:06d}") for s, scans in _SCANS.items() for n in range(scans)),
            frozenset(SEMANTICKITTI.decode(np.arange(len(SEMANTICKITTI))).tolist()),
            binary=True,
            folders=("sequences/", *(f"sequences/{s}/{part}" for s in _SCANS for part in ("", "predictions/"))),
            optional=frozenset({"description.txt"}),
        ),
    )
}


def find_server(dataset: str, scenes: Iterable[str]) -> Server:
    """The server of a dataset's test scenes.

    Args:
        dataset: a name in `SERVERS`, or `semantic3d` for whichever of its two benchmarks the scenes are of.
        scenes: names of the scenes to be submitted.

    Raises:
        ValueError: no such server, or scenes of both benchmarks of Semantic3D.
    """
    if dataset == "semantic3d":
        scenes = list(scenes)
        kinds = [name for name in ("reduced-8", "semantic-8") if any(map(SERVERS[name].entry, scenes))]
        if len(kinds) > 1:
            raise ValueError(f"semantic3d: the test scenes are of two benchmarks; choose one: {' or '.join(kinds)}")
        dataset = kinds[0] if kinds else "reduced-8"
    if dataset not in SERVERS:
        raise ValueError(f"server {dataset!r}: unknown; choose from {', '.join(SERVERS)}")
    return SERVERS[dataset]


def match_scenes(server: Server, scenes: Iterable[str]) -> dict[str, str]:
    """Scene -> file in the zip.

    Raises:
        ValueError: a scene is missing, is not one of the test scenes, or two of them are the same file.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for scene in scenes:
        entry = server.entry(scene)
        if entry not in server.entries:
            raise ValueError(f"{server.name}: {scene!r} is not one of its {len(server.entries)} test scenes")
        if entry in taken:
            raise ValueError(f"{server.name}: {scene!r} is a second scene for {entry}")
        found[scene] = entry
        taken.add(entry)
    missing = sorted(server.entries - taken)
    if missing:
        raise ValueError(
            f"{server.name}: {len(missing)} of {len(server.entries)} test scenes are missing, first {missing[0]}"
        )
    return found
