"""Samples to rows: voxel offsets, and labels that survive on their way."""

import numpy as np
import torch

from mink_decouple.data.transforms import Sample
from mink_decouple.engine.batches import SceneLabels, make_batch, make_view
from mink_decouple.engine.predict import crops
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.scenes import load_split, open_dataset


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
