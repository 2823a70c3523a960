"""Neighbours on the device, by Triton (interpreted without a GPU) and by plain torch; the oracle is the CPU's."""

import numpy as np
import pytest
import torch
from triton_support import DEVICE

from mink_decouple.data.collate import collate, point_view
from mink_decouple.data.neighbors import knn as knn_on_cpu
from mink_decouple.models import device_pyramid
from mink_decouple.models.device_pyramid import knn, pyramid_on


@pytest.fixture(params=["triton", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(device_pyramid, "usable", lambda device: request.param == "triton")
    monkeypatch.setattr(device_pyramid, "_CHUNK", 500)
    return str(request.param)


def on_device(points: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(points.astype(np.float32)).to(DEVICE)


def cloud(kind: str, rng: np.random.Generator) -> np.ndarray:
    points = {
        "box": rng.random((60, 3)),
        "surface": rng.random((60, 3)) * [9, 9, 0.01],
        "ties": rng.integers(-2, 2, (60, 3)),
        "uneven": rng.standard_normal((60, 3)) ** 5,
        "one place": np.ones((9, 3)),
    }[kind]
    return points.astype(np.float32)


@pytest.mark.parametrize(("kind", "k"), [("box", 1), ("surface", 5), ("ties", 16), ("uneven", 5), ("one place", 3)])
def test_neighbours_equal_those_of_the_cpu(path: str, kind: str, k: int) -> None:
    points = cloud(kind, np.random.default_rng(k))
    found = knn(on_device(points), on_device(points), k)
    assert np.array_equal(found.cpu().numpy(), knn_on_cpu(points, points, k))


def test_queries_far_outside_and_few_points(path: str) -> None:
    rng = np.random.default_rng(0)
    points = rng.random((7, 3)).astype(np.float32)
    query = np.concatenate([points * 3 - 1, [[1e3, -1e3, 0.5], [0, 0, -1e9], [3e9, 3e9, 3e9]]]).astype(np.float32)
    for k in (3, 9):
        found = knn(on_device(query), on_device(points), k)
        assert np.array_equal(found.cpu().numpy(), knn_on_cpu(query, points, k))


def test_samples_of_a_batch_never_meet(path: str) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.random((n, 3)).astype(np.float32) for n in (20, 3, 30)]
    batch = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 3, 30])).to(DEVICE)
    points = on_device(np.concatenate(parts))
    found = knn(points, points, 5, batch, batch).cpu().numpy()
    starts = [0, 20, 23]
    expected = [knn_on_cpu(part, part, 5) + start for part, start in zip(parts, starts)]
    assert np.array_equal(found, np.concatenate(expected))
    assert knn(points[:0], points, 4).shape == (0, 4)


def test_the_pyramid_of_a_batch_equals_the_collated_one(path: str) -> None:
    rng = np.random.default_rng(2)
    ratios, k = (4, 3), 4
    views = [
        point_view("hall", rng.random((n, 3)).astype(np.float32), np.ones((n, 1)), np.zeros(n, int), ratios, k, rng)
        for n in (30, 3, 16)
    ]
    batch = collate(views)
    assert batch.pyramid is not None
    levels = pyramid_on(batch.coords.to(DEVICE), [len(view.coords) for view in views], ratios, k)
    for ours, theirs in zip(levels, batch.pyramid, strict=True):
        for name in ("coords", "neighbors", "pool", "up"):
            assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name


def test_faults_are_named() -> None:
    points = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="k is 0"):
        knn(points, points, 0)
    with pytest.raises(ValueError, match="support is empty"):
        knn(points, points[:0], 1)
    with pytest.raises(ValueError, match="of both"):
        knn(points, points, 1, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sum to 4 rows"):
        pyramid_on(points, [3], (2,), 1)
    with pytest.raises(ValueError, match="ratios"):
        pyramid_on(points, [4], (0,), 1)
    with pytest.raises(ValueError, match="at most 511"):
        pyramid_on(torch.zeros(512, 3), [1] * 512, (2,), 1)
