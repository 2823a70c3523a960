"""The cached II-step: features of a frozen backbone, labelled rows only where nothing else is needed."""

import torch

from mink_decouple.engine.batches import SceneLabels
from mink_decouple.engine.evaluate import make_model
from mink_decouple.engine.runtime import derive_seed, generator
from mink_decouple.engine.scenes import load_split, open_dataset, reveal, training_labels
from mink_decouple.engine.second_step import cache_features

CPU = torch.device("cpu")


def cached(config):
    dataset = open_dataset(config)
    scenes = load_split(config, dataset, "train")
    scenes = reveal(scenes, training_labels(config, dataset, scenes))
    labels = {s.name: SceneLabels.given(s) for s in scenes}
    model = make_model(config, dataset.classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = cache_features(model, config, scenes, labels, 3, CPU, "iter_00_II", with_pseudo=False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return features


def test_a_linear_classifier_needs_the_labelled_rows_alone(make_config):
    features = cached(make_config("minkunet", augment={"drop_points": None}))
    assert (features.target >= 0).all()
    assert 0 < len(features.target) <= 24
    assert not features.feats.requires_grad


def test_a_classifier_with_batch_norm_gets_unlabelled_rows_for_its_statistics(make_config):
    features = cached(make_config("randla", ii={"context": 10}))
    assert (features.target < 0).sum() >= 10
    assert (features.target >= 0).any()


def test_every_pass_adds_an_augmented_copy(make_config):
    one = cached(make_config("minkunet", ii={"cache_passes": 1}))
    three = cached(make_config("minkunet", ii={"cache_passes": 3}))
    assert len(three.target) > 2 * len(one.target)
    assert not torch.equal(three.feats[: len(one.feats)], three.feats[-len(one.feats) :])


def test_seeds_depend_on_every_part_and_on_nothing_else():
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    assert len({derive_seed(1, "a"), derive_seed(1, "b"), derive_seed(2, "a"), derive_seed(1, "a", 0)}) == 4
    assert generator(3, "x").random() == generator(3, "x").random()
