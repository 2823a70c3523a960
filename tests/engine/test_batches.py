"""Samples to rows: voxel offsets, and labels that survive on their way."""

import numpy as np
import torch

from mink_decouple.data.transforms import Sample
from mink_decouple.engine import batches
from mink_decouple.engine.batches import SceneLabels, make_batch, make_view
from mink_decouple.engine.predict import crops
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import load_split, open_dataset
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


def test_a_pyramid_left_to_the_device_is_that_of_the_loader(make_config, monkeypatch):
    config = make_config("randla")
    scenes = load_split(config, open_dataset(config), "train")[:2]
    items = [(scene, SceneLabels.given(scene), crops(config, scene)[0]) for scene in scenes]
    here = torch.device("cpu")
    ratios = VARIANTS[config.model.variant]["ratios"]
    made = make_batch(config, 3, items, lambda s, rng: s, generator(0), here)
    assert made.later is None and made.batch.pyramid  # a CPU leaves it to the loader
    monkeypatch.setattr(batches, "pyramid_later", lambda config, device: (ratios, config.view.k))
    left = make_batch(config, 3, items, lambda s, rng: s, generator(0), here)
    assert not left.batch.pyramid
    moved = left.to(here)
    assert len(moved.batch.pyramid) == len(made.batch.pyramid) == len(ratios)
    for ours, theirs in zip(moved.batch.pyramid, made.batch.pyramid, strict=True):
        for name in ("coords", "neighbors", "pool", "up"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
