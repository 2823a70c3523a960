"""A folder of tiny clouds and configurations that train on it in a second."""

import numpy as np
import pytest

from mink_decouple.config import configs_dir, load_config, merge

CLASSES = """
classes:
  floor: {raw: [1]}
  wall: {raw: [2]}
  box: {raw: [7]}
ignore: [0]
splits: {train: [a, b], val: [c]}
"""


def tiny_room(rng, points=400):
    """A floor, one wall and a box on the floor; one point in fifty is unlabelled."""
    n = points // 4
    floor = np.c_[rng.uniform(0, 2, (2 * n, 2)), rng.normal(0, 0.01, 2 * n)]
    wall = np.c_[rng.uniform(0, 2, n), rng.normal(0, 0.01, n), rng.uniform(0, 2, n)]
    box = np.r_[0.8, 0.9, 0.2] + rng.uniform(-0.2, 0.2, (n, 3))
    xyz = np.concatenate([floor, wall, box]).astype(np.float32)
    label = np.repeat([1, 2, 7], [2 * n, n, n]).astype(np.uint8)
    label[rng.random(len(label)) < 0.02] = 0
    rgb = np.clip(rng.normal(0.5, 0.1, (len(xyz), 3)) + 0.2 * (label == 7)[:, None], 0, 1).astype(np.float32)
    return xyz, rgb, label


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder dataset of three labelled rooms."""
    root = tmp_path_factory.mktemp("rooms")
    rng = np.random.default_rng(0)
    for name in "abc":
        xyz, rgb, label = tiny_room(rng)
        np.savez(root / f"{name}.npz", coords=xyz, rgb=rgb, label=label)
    (root / "classes.yaml").write_text(CLASSES)
    return root


SMALL = {
    "labels": {"budget": "4pt"},
    "data": {"dataset": "folder", "grid": 0.1, "features": ["rgb", "height"]},
    "augment": {"rotate_z": {"quarter": True}, "flip": {}, "drop_points": {}},
    "schedule": {
        "iterations": 1,
        "steps": 2,
        "pretrain": {"epochs": 3, "lr": 1e-2},
        "i_step": {"epochs": 2, "lr": 1e-3},
        "ii_step": {"epochs": 2, "lr": 1e-3},
    },
    "view": {"batch": 2, "workers": 1},
    "ii": {"cache_passes": 1, "rows": 64, "context": 16},
    "eval": {"votes": 2},
}
BACKBONE = {
    "minkunet": {"model": {"variant": "tiny"}, "view": {"crop_points": 0}},
    "randla": {"model": {"variant": "4"}, "view": {"crop_points": 150, "k": 8}},
}


@pytest.fixture
def make_config(folder):
    """`make_config(backbone, recipe, **overrides)` -> Config over the tiny rooms."""

    def make(backbone="minkunet", recipe="paper", **overrides):
        tree = merge(merge(SMALL, BACKBONE[backbone]), {"data": {"root": str(folder)}})
        if recipe == "fully_supervised":
            tree = {**tree, "labels": {}}
        base = configs_dir() / "base.yaml"
        return load_config(base, backbone=backbone, recipe=recipe, overrides=merge(tree, overrides))

    return make
