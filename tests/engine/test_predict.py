"""Voting prediction: every grid point of every scene gets a probability, whatever the crops."""

import numpy as np
import pytest
import torch

from mink_decouple.data.segments import over_segment
from mink_decouple.data.transforms import Sample, is_on
from mink_decouple.engine import predict
from mink_decouple.engine.batches import prefetch
from mink_decouple.engine.evaluate import evaluate, make_model
from mink_decouple.engine.predict import crops, decide, in_tiles, probabilities, turned
from mink_decouple.engine.scenes import load_split, open_dataset

CPU = torch.device("cpu")


def scenes_of(config, split="val"):
    dataset = open_dataset(config)
    return load_split(config, dataset, split), dataset.classes


@pytest.mark.parametrize(("backbone", "size"), [("minkunet", 0), ("minkunet", 60), ("randla", 80)])
def test_every_grid_point_gets_a_distribution(make_config, backbone, size):
    config = make_config(backbone, view={"crop_points": size})
    scenes, classes = scenes_of(config)
    probs = probabilities(make_model(config, classes), config, scenes[0], 3, CPU, votes=2)
    assert probs.shape == (len(scenes[0].grid), 3)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)


def test_a_sparse_network_trained_on_crops_is_asked_for_the_whole(make_config):
    """Unless its features say where in a crop a point lies."""
    whole, cropped = make_config("minkunet"), make_config("minkunet", view={"crop_points": 60})
    scenes, classes = scenes_of(whole)
    model = make_model(whole, classes)
    np.testing.assert_array_equal(*(probabilities(model, c, scenes[0], 3, CPU, votes=2) for c in (whole, cropped)))
    ids, confidence = decide(model, cropped, scenes[0], 3, CPU, votes=2)
    probs = probabilities(model, cropped, scenes[0], 3, CPU, votes=2)
    np.testing.assert_array_equal(ids, probs.argmax(1))
    np.testing.assert_array_equal(confidence, probs.max(1))
    assert in_tiles(cropped)
    assert not in_tiles(make_config("minkunet", view={"crop_points": 60}, data={"features": ["xyz"]}))
    assert not in_tiles(make_config("randla"))


@pytest.mark.parametrize(("backbone", "size"), [("minkunet", 0), ("randla", 80)])
def test_smoothed_decisions_are_those_of_the_geometric_mean_of_each_segment(make_config, backbone, size):
    options = {"view": {"crop_points": size}, "segments": {"scale": 4.0, "most": 40}}
    plain, smoothed = (make_config(backbone, **options, eval={"smooth": how}) for how in ("none", "segments"))
    scenes, classes = scenes_of(plain)
    model, grid = make_model(plain, classes), scenes[0].grid
    ids, confidence = decide(model, smoothed, scenes[0], 3, CPU, votes=2)
    raw = probabilities(model, smoothed, scenes[0], 3, CPU, votes=2)
    segments = over_segment(grid, smoothed.segments)
    assert 1 < segments.max() + 1 < len(grid)
    for number in range(segments.max() + 1):
        inside = segments == number
        mean = np.exp(np.log(raw[inside].astype(np.float64)).mean(0))
        mean /= mean.sum()
        assert (ids[inside] == mean.argmax()).all()
        np.testing.assert_allclose(confidence[inside], mean.max(), rtol=1e-5)
    assert (confidence != decide(model, plain, scenes[0], 3, CPU, votes=2)[1]).any(), "the test can tell"
    np.testing.assert_array_equal(raw, probabilities(model, plain, scenes[0], 3, CPU, votes=2))


def test_segments_of_a_large_scene_end_at_its_tiles(make_config, monkeypatch):
    """Each tile is smoothed with its surroundings; every point is decided once."""
    config = make_config("minkunet", eval={"smooth": "segments"}, segments={"scale": 4.0, "most": 40})
    scenes, classes = scenes_of(config)
    model = make_model(config, classes)
    whole = decide(model, config, scenes[0], 3, CPU, votes=1)
    cut = []
    monkeypatch.setattr(predict, "WHOLE_POINTS", len(scenes[0].grid) // 3)
    monkeypatch.setattr(predict, "over_segment", lambda *a: cut.append(len(a[0])) or over_segment(*a))
    tiled = decide(model, config, scenes[0], 3, CPU, votes=1)
    assert len(cut) >= 3
    assert (whole[0] == tiled[0]).mean() > 0.9


def test_colour_separates_segments_only_where_the_network_sees_it(make_config, monkeypatch):
    seen = []
    monkeypatch.setattr(predict, "over_segment", lambda *a: seen.append(sorted(a[0].features)) or over_segment(*a))
    for features in (["rgb"], ["height"]):
        config = make_config("minkunet", eval={"smooth": "segments"}, data={"features": features})
        scenes, classes = scenes_of(config)
        decide(make_model(config, classes), config, scenes[0], 3, CPU, votes=1)
    assert seen == [["rgb"], []]


def test_crops_cover_the_scene(make_config):
    config = make_config("randla", view={"crop_points": 50})
    scene = scenes_of(config)[0][0]
    parts = crops(config, scene)
    assert len(parts) > 1
    assert set(np.concatenate([p.points for p in parts])) == set(range(len(scene.grid)))


def test_one_vote_over_the_whole_scene_is_the_plain_forward_pass(make_config):
    config = make_config("minkunet")
    scenes, classes = scenes_of(config)
    model = make_model(config, classes).eval()
    from mink_decouple.engine.batches import SceneLabels, make_batch
    from mink_decouple.engine.runtime import generator

    item = make_batch(
        config,
        3,
        [(scenes[0], SceneLabels.given(scenes[0]), crops(config, scenes[0])[0])],
        turned(0, config.augment),
        generator(0),
    )
    with torch.no_grad():
        plain = model(item.batch).softmax(1)[item.batch.inverse]
    np.testing.assert_allclose(
        probabilities(model, config, scenes[0], 3, CPU, votes=1)[item.points.numpy()], plain, atol=1e-6
    )


def test_scores_are_on_raw_points_and_ignored_ones_do_not_count(make_config):
    config = make_config("minkunet")
    scenes, classes = scenes_of(config)
    matrix = evaluate(make_model(config, classes), config, scenes, 3, CPU)
    assert matrix.points == int((scenes[0].cloud.labels >= 0).sum()) < len(scenes[0].cloud)


def test_the_first_eight_votes_are_eight_rigid_symmetries():
    coords = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    sample = Sample("s", coords, {}, np.full(5, -1), np.arange(5), np.zeros(3))
    augment = {"rotate_z": {}, "flip": {}, "scale": {}}
    seen = [turned(vote, augment)(sample, np.random.default_rng(0)).coords for vote in range(8)]
    assert len({moved.tobytes() for moved in seen}) == 8
    for moved in seen:
        np.testing.assert_allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(coords, axis=1), rtol=1e-5)
        np.testing.assert_array_equal(moved[:, 2], coords[:, 2])
    assert np.abs(turned(8, augment)(sample, np.random.default_rng(0)).coords).sum() > np.abs(coords).sum()


@pytest.mark.parametrize(
    ("augment", "views"),
    [
        ({}, 1),
        ({"jitter": {}, "rotate_z": None}, 1),
        ({"flip": {}}, 2),
        ({"rotate_z": True, "flip": False}, 4),
        ({"scale": {}}, 16),
        ({"rotate_z": {}, "flip": {}}, 8),
    ],
)
def test_votes_see_a_scene_as_training_may_have_shown_it_and_no_other_way(augment, views):
    coords = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    sample = Sample("s", coords, {}, np.full(5, -1), np.arange(5), np.zeros(3))
    seen = [turned(vote, augment)(sample, np.random.default_rng(0)).coords for vote in range(16)]
    assert len({moved.tobytes() for moved in seen}) == views
    np.testing.assert_array_equal(seen[0], coords)
    size = [np.linalg.norm(moved) for moved in seen]
    assert (max(size) > 1.01 * min(size)) == ("scale" in augment)
    if not is_on(augment.get("rotate_z")):
        np.testing.assert_allclose(np.abs(seen[1]) / size[1], np.abs(coords) / size[0], rtol=1e-5)


def test_a_whole_scene_is_not_asked_twice_for_the_same_view(make_config, monkeypatch):
    config = make_config("minkunet", augment={"rotate_z": None, "flip": {}})
    scenes, classes = scenes_of(config)
    model, calls = make_model(config, classes), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda batch: calls.append(1) or forward(batch))
    two, nine = (probabilities(model, config, scenes[0], 3, CPU, votes=votes) for votes in (2, 9))
    assert len(calls) == 4
    np.testing.assert_array_equal(two, nine)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_prefetching_keeps_the_order(workers):
    jobs = iter([lambda i=i: i for i in range(20)])
    assert list(prefetch(jobs, workers)) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_loader_thread_reaches_the_caller(workers):
    def fail():
        raise ValueError("this cloud")

    with pytest.raises(ValueError, match="this cloud"):
        list(prefetch(iter([lambda: 1, fail]), workers))
