import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.data.collate import collate, point_view, rows_from_points, voxel_view

RATIOS = (4, 2)


def sample(n, seed, classes=4):
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        rng.uniform(0, 1, (n, 5)).astype(np.float32),
        rng.integers(-1, classes, n),
    )


def points_of(n, seed):
    return point_view(f"scene{seed}", *sample(n, seed), RATIOS, 4, np.random.default_rng(seed))


def voxels_of(n, seed, size=0.5):
    return voxel_view(f"scene{seed}", *sample(n, seed), size)


def majority_by_hand(values, inverse, n):
    out = np.full(n, -1)
    for row in range(n):
        seen = values[(inverse == row) & (values >= 0)]
        if len(seen):
            counts = np.bincount(seen)
            if (counts == counts.max()).sum() == 1:
                out[row] = counts.argmax()
    return out


def test_a_point_view_is_a_shuffle_of_its_sample():
    coords, feats, target = sample(60, 0)
    view = point_view("a", coords, feats, target, RATIOS, 4, np.random.default_rng(0))
    for rows, points in ((view.coords, coords), (view.feats, feats), (view.target, target)):
        np.testing.assert_array_equal(rows[view.inverse].numpy(), points)
    assert not np.array_equal(view.inverse.numpy(), np.arange(60))
    assert torch.equal(view.pyramid[0].coords, view.coords)


def test_the_same_generator_state_gives_the_same_point_view():
    one, two = points_of(60, 3), points_of(60, 3)
    assert torch.equal(one.inverse, two.inverse)
    assert all(torch.equal(a.neighbors, b.neighbors) for a, b in zip(one.pyramid, two.pyramid, strict=True))


def test_a_voxel_view_has_a_row_per_occupied_voxel_with_means_and_majority():
    coords, feats, target = sample(200, 1)
    view = voxel_view("a", coords, feats, target, 0.5)
    cells = np.floor(coords / 0.5).astype(np.int64)
    inverse = view.inverse.numpy()
    np.testing.assert_array_equal(view.voxels[inverse].numpy(), cells)
    assert len(np.unique(cells, axis=0)) == len(view.voxels)
    for row in range(len(view.voxels)):
        np.testing.assert_allclose(view.feats[row].numpy(), feats[inverse == row].mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(view.coords[row].numpy(), coords[inverse == row].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(view.target.numpy(), majority_by_hand(target, inverse, len(view.voxels)))


def test_one_labelled_point_labels_its_voxel_and_a_tie_does_not():
    coords = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [1.1, 0, 0], [1.2, 0, 0]], np.float32)
    view = voxel_view("a", coords, np.zeros((4, 1), np.float32), np.array([-1, 3, 1, 2]), 1.0)
    assert view.target.tolist() == [3, -1]


def test_a_sample_without_any_label_has_no_target():
    coords, feats, _ = sample(30, 2)
    unlabelled = np.full(30, -1)
    assert (voxel_view("a", coords, feats, unlabelled, 0.5).target == -1).all()
    assert (point_view("a", coords, feats, unlabelled, RATIOS, 4, np.random.default_rng(0)).target == -1).all()


def test_views_do_not_share_memory_with_the_sample():
    coords, feats, target = sample(30, 2)
    for view in (voxel_view("a", coords, feats, target, 1e-4), points_of(30, 2)):
        before = [a.copy() for a in (coords, feats, target)]
        for tensor in (view.coords, view.feats, view.target):
            tensor.zero_()
        for array, kept in zip((coords, feats, target), before, strict=True):
            np.testing.assert_array_equal(array, kept)


def test_collated_row_numbers_point_into_their_own_sample():
    views = [points_of(n, seed) for seed, n in enumerate((40, 7, 23))]
    batch = collate(views)
    assert batch.names == ("scene0", "scene1", "scene2")
    assert batch.sizes.tolist() == [40, 7, 23]
    np.testing.assert_array_equal(batch.batch.numpy(), np.repeat([0, 1, 2], [40, 7, 23]))
    rows = np.cumsum([0, 40, 7])
    begin = 0
    for view, start in zip(views, rows, strict=True):
        end = begin + len(view.inverse)
        assert torch.equal(batch.coords[batch.inverse[begin:end]], view.coords[view.inverse])
        assert (batch.inverse[begin:end] >= start).all()
        begin = end
    for number, level in enumerate(batch.pyramid):
        alone = [view.pyramid[number] for view in views]
        fine = torch.repeat_interleave(torch.arange(3), torch.tensor([len(a.coords) for a in alone]))
        coarse = torch.repeat_interleave(torch.arange(3), torch.tensor([len(a.pool) for a in alone]))
        assert torch.equal(fine[level.neighbors], fine.unsqueeze(1).expand_as(level.neighbors))
        assert torch.equal(fine[level.pool], coarse)
        assert torch.equal(coarse[level.up], fine)
        kept = level.coords[level.pool]
        assert torch.equal(kept[level.up], torch.cat([a.coords[a.pool][a.up] for a in alone]))
        if number:
            assert torch.equal(batch.pyramid[number - 1].coords[batch.pyramid[number - 1].pool], level.coords)


def test_collated_voxels_carry_their_sample_number():
    views = [voxels_of(50, 0), voxels_of(20, 1)]
    batch = collate(views)
    assert batch.voxels.dtype == torch.int32 and batch.pyramid is None
    assert torch.equal(batch.voxels[:, 0].long(), batch.batch)
    assert torch.equal(batch.voxels[:, 1:], torch.cat([v.voxels for v in views]))
    assert len(torch.unique(batch.voxels, dim=0)) == len(batch.voxels)
    cells = np.floor(np.concatenate([sample(50, 0)[0], sample(20, 1)[0]]) / 0.5)
    np.testing.assert_array_equal(batch.voxels[batch.inverse, 1:].numpy(), cells)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.1, 3.0), st.integers(1, 5))
def test_rows_take_the_majority_of_their_points(seed, n, size, classes):
    rng = np.random.default_rng(seed)
    coords, feats, target = sample(n, seed)
    batch = collate([voxel_view("a", coords, feats, target, size), voxels_of(9, 1, size)])
    values = rng.integers(-2, classes, n + 9)
    found = rows_from_points(torch.from_numpy(values), batch, classes)
    np.testing.assert_array_equal(found.numpy(), majority_by_hand(values, batch.inverse.numpy(), len(batch.coords)))


def test_rows_from_points_of_the_given_labels_is_the_target():
    for view, target in ((voxels_of(80, 4), sample(80, 4)[2]), (points_of(80, 4), sample(80, 4)[2])):
        batch = collate([view])
        assert torch.equal(rows_from_points(torch.from_numpy(target), batch, 4), batch.target)


def test_rows_from_points_without_any_class():
    batch = collate([voxels_of(20, 0)])
    assert (rows_from_points(torch.full((20,), -1), batch, 3) == -1).all()


def test_a_batch_moves_with_all_its_tensors():
    batch = collate([points_of(20, 0)])
    moved = batch.to("meta")
    assert moved.feats.device.type == moved.inverse.device.type == moved.pyramid[1].up.device.type == "meta"
    assert moved.names == batch.names and batch.feats.device.type == "cpu"


def test_faults_are_named():
    coords, feats, target = sample(10, 0)
    with pytest.raises(ValueError, match="sample of hall: no points"):
        voxel_view("hall", coords[:0], feats[:0], target[:0], 0.1)
    with pytest.raises(ValueError, match="sample of hall: coords"):
        point_view("hall", coords, feats[:5], target, RATIOS, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no views"):
        collate([])
    with pytest.raises(ValueError, match="differ in kind"):
        collate([points_of(10, 0), voxels_of(10, 0)])
    batch = collate([points_of(10, 0)])
    with pytest.raises(ValueError, match="one per sample point"):
        rows_from_points(torch.zeros(9, dtype=torch.int64), batch, 3)
    with pytest.raises(ValueError, match="class 3"):
        rows_from_points(torch.full((10,), 3), batch, 3)


def test_a_voxel_may_be_flat():
    coords = np.array([[0.1, 0.1, 0.1], [1.9, 1.9, 0.4], [0.1, 0.1, 0.6], [2.1, 0.1, 0.1]], np.float32)
    view = voxel_view("a", coords, np.zeros((4, 1), np.float32), np.array([0, -1, 1, 2]), np.array([2.0, 2.0, 0.5]))
    assert view.voxels.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert view.inverse.tolist() == [0, 0, 1, 2] and view.target.tolist() == [0, 1, 2]
    for edges in ([1.0, 1.0], [1.0, 0.0, 1.0], -1.0):
        with pytest.raises(ValueError, match="three, along x, y and z"):
            voxel_view("a", coords, np.zeros((4, 1), np.float32), np.zeros(4, int), np.array(edges))
