import os
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.grid import subsample

SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).parents[3] / "shared" / "data"))
HALLWAY = SAMPLES / "s3dis" / "Stanford3dDataset_v1.2_Aligned_Version" / "Area_3" / "hallway_3" / "Annotations"


def cloud(seed: int = 0, count: int = 500) -> PointCloud:
    rng = np.random.default_rng(seed)
    features = {"rgb": rng.random((count, 3)).astype(np.float32), "return_number": rng.integers(1, 5, count)}
    coords = rng.uniform(-2, 2, (count, 3)).astype(np.float32)
    return PointCloud("room", coords, features=features, labels=rng.integers(-1, 3, count))


def test_grid_points_are_barycentres_with_mean_features() -> None:
    raw = cloud()
    grid = subsample(raw, 0.7)
    for v in range(len(grid)):
        members = grid.inverse == v
        np.testing.assert_allclose(grid.coords[v], raw.coords[members].mean(0), atol=1e-6)
        np.testing.assert_allclose(grid.features["rgb"][v], raw.features["rgb"][members].mean(0), rtol=1e-5)
        np.testing.assert_allclose(grid.features["return_number"][v], raw.features["return_number"][members].mean())
    assert grid.coords.dtype == np.float32
    assert all(column.dtype == np.float32 for column in grid.features.values())


def test_ignored_points_do_not_vote() -> None:
    raw = PointCloud("a", np.zeros((4, 3), np.float32), labels=np.array([-1, -1, -1, 2]))
    grid = subsample(raw, 1.0)
    assert grid.labels is not None and grid.labels.tolist() == [2]


def test_every_raw_point_lies_in_the_cell_of_its_grid_point() -> None:
    raw = cloud(3)
    grid = subsample(raw, 0.5)
    assert np.abs(grid.coords[grid.inverse] - raw.coords).max() <= 0.5
    assert sorted(np.unique(grid.inverse)) == list(range(len(grid)))


def test_unlabelled_cloud_stays_unlabelled() -> None:
    assert subsample(PointCloud("a", np.zeros((4, 3), np.float32)), 1.0).labels is None


def test_error_names_the_scene() -> None:
    with pytest.raises(ValueError, match=r"^a: voxel size: -1"):
        subsample(PointCloud("a", np.zeros((4, 3), np.float32)), -1)


@pytest.mark.skipif(not HALLWAY.is_dir(), reason=f"no S3DIS sample at {HALLWAY}; set MINK_DECOUPLE_SAMPLES")
def test_hallway_3_has_the_known_4_cm_grid() -> None:
    names = ["ceiling", "floor", "wall", "door", "clutter"]
    files = sorted(HALLWAY.glob("*.txt"))
    parts = [np.loadtxt(path, usecols=(0, 1, 2), dtype=np.float32) for path in files]
    labels = np.concatenate([np.full(len(p), names.index(f.name.split("_")[0])) for p, f in zip(parts, files)])
    grid = subsample(PointCloud("hallway_3", np.concatenate(parts), labels=labels), 0.04)
    assert len(grid) == 11_731
    assert np.bincount(grid.labels).tolist() == [2318, 2205, 3738, 2492, 978]
