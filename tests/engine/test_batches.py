"""Samples to rows: voxel offsets, and labels that survive on their way."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch

from mink_decouple.data.transforms import Sample
from mink_decouple.engine import batches
from mink_decouple.engine.batches import SceneLabels, draw, make_batch, make_sampler, make_view, training_batches
from mink_decouple.engine.predict import crops
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import load_split, open_dataset
from mink_decouple.engine.train import Trainer
from mink_decouple.models import device_pyramid
from mink_decouple.models.randlanet import VARIANTS


def test_offset_and_cell_together_give_back_the_place(make_config):
    config = make_config(data={"features": ["offset"]}, view={"voxel": [0.4, 0.2, 0.1]})
    coords = np.random.default_rng(0).uniform(-3, 3, (50, 3)).astype(np.float32)
    sample = Sample("s", coords, {}, np.full(50, -1), np.arange(50), np.zeros(3))
    view = make_view(config, sample, generator(0))
    place = (view.voxels.numpy() + view.feats.numpy() + 0.5) * np.array([0.4, 0.2, 0.1])
    np.testing.assert_allclose(place, view.coords.numpy(), atol=1e-5)
    assert np.abs(view.feats.numpy()).max() <= 0.5


def test_a_given_label_hides_the_pseudo_label_of_its_row_and_others_keep_theirs(make_config):
    config = make_config("minkunet")
    dataset = open_dataset(config)
    scene = load_split(config, dataset, "train")[0]
    count = len(scene.grid)
    visible = np.full(count, -1)
    visible[::7] = 1
    pseudo = np.where(np.arange(count) % 2, 2, -1)
    labels = SceneLabels(visible, pseudo, np.where(pseudo >= 0, 0.75, 0.0).astype(np.float32))
    item = make_batch(config, 3, [(scene, labels, crops(config, scene)[0])], lambda s, rng: s, generator(0))
    given = item.batch.target >= 0
    assert given.sum() > 0 and (item.pseudo[given] == -1).all()
    has = item.pseudo >= 0
    assert has.any() and (item.pseudo[has] == 2).all() and torch.allclose(item.confidence[has], torch.tensor(0.75))


def test_a_pyramid_left_to_the_device_is_that_of_the_loader(make_config):
    config = make_config("randla")
    scenes = load_split(config, open_dataset(config), "train")[:2]
    items = [(scene, SceneLabels.given(scene), crops(config, scene)[0]) for scene in scenes]
    ratios = VARIANTS[config.model.variant]["ratios"]
    later = batches.pyramid_later(config, torch.device("cpu"))
    made = make_batch(config, 3, items, lambda s, rng: s, generator(0), later)
    assert made.later is None and made.batch.pyramid  # a CPU leaves it to the loader
    left = make_batch(config, 3, items, lambda s, rng: s, generator(0), (ratios, config.view.k))
    assert not left.batch.pyramid
    moved = left.to(torch.device("cpu"))
    assert len(moved.batch.pyramid) == len(made.batch.pyramid) == len(ratios)
    for ours, theirs in zip(moved.batch.pyramid, made.batch.pyramid, strict=True):
        for name in ("coords", "neighbors", "pool", "up"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("backbone", ["minkunet", "randla"])
def test_no_loader_thread_asks_for_the_device(make_config, tmp_path, monkeypatch, backbone):
    """In such a thread the current GPU is the first one, whichever the process has taken."""
    asked, original = [], device_pyramid.usable

    def usable(device):
        asked.append(threading.current_thread())
        return original(device)

    monkeypatch.setattr(device_pyramid, "usable", usable)
    Trainer(make_config(backbone, view={"workers": 2}), tmp_path / "run", torch.device("cpu")).run()
    assert set(asked) == ({threading.main_thread()} if backbone == "randla" else set())


def commonest(values):
    """The oracle of the majority rule: the commonest non-negative value, -1 for none or a tie."""
    count = Counter(value for value in values if value >= 0).most_common(2)
    if not count or (len(count) == 2 and count[0][1] == count[1][1]):
        return -1
    return count[0][0]


def labelled_scenes(config):
    """The two training scenes, each with random given and pseudo-labels."""
    items = []
    for number, scene in enumerate(load_split(config, open_dataset(config), "train")):
        rng, count = np.random.default_rng(number), len(scene.grid)
        visible = np.where(rng.random(count) < 0.3, rng.integers(0, 3, count), -1)
        pseudo = np.where((visible < 0) & (rng.random(count) < 0.6), rng.integers(0, 3, count), -1)
        labels = SceneLabels(visible, pseudo, np.where(pseudo >= 0, 0.5 + 0.25 * number, 0).astype(np.float32))
        items.append((scene, labels, crops(config, scene)[0]))
    return items


def test_a_mixed_batch_has_the_points_and_labels_of_both_scenes_and_rows_by_majority(make_config):
    config = make_config("minkunet", view={"voxel": [0.3, 0.3, 0.3]})  # coarse: many voxels hold points of both
    items = labelled_scenes(config)
    mixed = make_batch(config, 3, items, lambda s, rng: s, generator(0), groups=[(0, 1)])
    sizes = [len(index.points) for _, _, index in items]
    assert mixed.batch.names == ("a+b",) and mixed.batch.sizes.tolist() == [sum(sizes)]
    parts = np.split(mixed.points.numpy(), [sizes[0]])
    origin = np.repeat([0, 1], sizes)
    for (_, _, index), part in zip(items, parts, strict=True):
        np.testing.assert_array_equal(np.sort(part), index.points)
    visible = np.concatenate([labels.visible[p] for (_, labels, _), p in zip(items, parts, strict=True)])
    pseudo = np.concatenate([labels.pseudo[p] for (_, labels, _), p in zip(items, parts, strict=True)])
    shared = 0
    for row in range(len(mixed.batch.coords)):
        held = (mixed.batch.inverse == row).numpy()
        shared += len(set(origin[held])) == 2
        assert mixed.batch.target[row] == commonest(visible[held])
        expected = -1 if mixed.batch.target[row] >= 0 else commonest(pseudo[held])
        assert mixed.pseudo[row] == expected
    assert shared > 10
    voxels = [tuple(v) for v in mixed.batch.voxels.tolist()]
    assert len(set(voxels)) == len(voxels) and {v[0] for v in voxels} == {0}


def test_each_scene_of_a_mixed_sample_is_centred_and_augmented_on_its_own(make_config):
    config = make_config("minkunet", view={"voxel": [0.05, 0.05, 0.05]})
    items = labelled_scenes(config)
    seen = []

    def augment(sample, rng):
        seen.append(sample)
        return sample

    mixed = make_batch(config, 3, items, augment, generator(0), groups=[(0, 1)])
    assert [sample.name for sample in seen] == ["a", "b"]
    for sample in seen:
        np.testing.assert_allclose((sample.coords.min(0) + sample.coords.max(0)) / 2, 0, atol=1e-5)
    rows = mixed.batch.coords[mixed.batch.inverse].numpy()
    np.testing.assert_allclose(rows, np.concatenate([sample.coords for sample in seen]), atol=0.06)


def test_groups_of_one_are_the_batch_without_mixing(make_config):
    config = make_config("randla")
    items = labelled_scenes(config)
    plain = make_batch(config, 3, items, lambda s, rng: s, generator(0))
    alone = make_batch(config, 3, items, lambda s, rng: s, generator(0), groups=[(0,), (1,)])
    for name in ("coords", "feats", "target", "batch", "inverse", "sizes"):
        assert torch.equal(getattr(plain.batch, name), getattr(alone.batch, name)), name
    assert torch.equal(plain.pseudo, alone.pseudo) and torch.equal(plain.points, alone.points)


@pytest.mark.parametrize(("backbone", "batch"), [("randla", 1), ("randla", 2), ("minkunet", 1)])
def test_mixing_halves_keeps_the_number_of_points_and_every_given_label(make_config, backbone, batch):
    config = make_config(backbone, view={"batch": batch, "label_centred": 0.0}, augment={"drop_points": None})
    scenes = {s.name: s for s in load_split(config, open_dataset(config), "train")}
    labels = {name: SceneLabels.given(scene) for name, scene in scenes.items()}
    for name, scene in scenes.items():
        visible = np.full(len(scene.grid), -1)
        visible[::40] = 1
        labels[name] = SceneLabels(visible, labels[name].pseudo, labels[name].confidence)
    for mix in (0.0, 1.0):
        sampler = make_sampler(config, list(scenes.values()))
        items = list(training_batches(config, 3, scenes, labels, sampler, 4, ("mix",), mix=mix))
        for item in items:
            assert len(item.batch.names) == batch
            assert all(("+" in name) == bool(mix) for name in item.batch.names)
            whole = max(len(scene.grid) for scene in scenes.values())
            if backbone == "randla":
                assert item.batch.sizes.tolist() == [150] * batch
            else:
                assert whole - 40 < item.batch.sizes.sum() <= whole  # the two rooms differ by a few points
            assert (item.batch.target >= 0).sum() >= 2


def test_pairs_are_joined_whole_and_with_the_probability_asked_for(make_config):
    config = make_config("minkunet", view={"batch": 5})
    sampler = make_sampler(config, load_split(config, open_dataset(config), "train"))
    mixed = pairs = 0
    for step in range(300):
        drawn, groups = draw(config, sampler, generator(step), 0.3)
        assert len(drawn) == 5 and sorted(n for group in groups for n in group) == list(range(5))
        assert all(group in [(0, 1), (2, 3), (0,), (1,), (2,), (3,), (4,)] for group in groups)
        mixed += sum(len(group) == 2 for group in groups)
        pairs += 2
    assert 0.24 < mixed / pairs < 0.36


def test_without_mixing_nothing_more_is_drawn(make_config):
    config = make_config("minkunet")
    scenes = load_split(config, open_dataset(config), "train")
    rng, plain = generator(0), generator(0)
    one, two = make_sampler(config, scenes), make_sampler(config, scenes)
    drawn, groups = draw(config, one, rng, 0.0)
    assert groups is None
    assert [d.scene for d in drawn] == [two.next(plain).scene for _ in range(config.view.batch)]
    assert rng.random() == plain.random()
