"""`view.max_points`: no micro-batch is larger, every scene is still seen, and a run goes on as it would have."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mink_decouple.config import Config, dump, override
from mink_decouple.data.sampling import CropSampler, SceneSampler, epoch_batches
from mink_decouple.engine.batches import draw
from mink_decouple.engine.interrupt import Stopped
from mink_decouple.engine.runtime import generator
from mink_decouple.engine.state import require_same_settings
from mink_decouple.engine.train import Trainer

CPU = torch.device("cpu")
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def clouds(sizes):
    rng = np.random.default_rng(0)
    return {str(number): rng.random((size, 3), dtype=np.float32) for number, size in enumerate(sizes)}


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(60, 200), st.integers(1, 5))
def test_a_micro_batch_of_scenes_keeps_to_its_points_and_every_scene_comes_once_a_round(sizes, limit, batch):
    config = override(Config(), {"view": {"batch": batch, "max_points": limit, "crop_points": 0}})
    sampler, seen = SceneSampler(clouds(sizes)), []
    for number in range(3 * len(sizes)):
        drawn, _ = draw(config, sampler, generator(0, number), mix=0.0)
        assert 1 <= len(drawn) <= batch and sum(len(one.points) for one in drawn) <= limit
        seen += [one.scene for one in drawn]
    for begin in range(0, len(seen) - len(sizes) + 1, len(sizes)):
        assert sorted(seen[begin : begin + len(sizes)]) == sorted(clouds(sizes))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(60, 200), st.integers(1, 5), st.integers(1, 60))
def test_a_micro_batch_of_crops_keeps_to_its_points(sizes, limit, batch, crop):
    config = override(Config(), {"view": {"batch": batch, "max_points": limit, "crop_points": crop}})
    sampler = CropSampler(clouds(sizes), crop)
    for number in range(10):
        drawn, _ = draw(config, sampler, generator(0, number), mix=0.0)
        assert 1 <= len(drawn) <= batch and sum(len(one.points) for one in drawn) <= limit


def test_an_epoch_s_micro_batches_by_hand():
    assert epoch_batches([10, 20, 30], 0, 2) == 2
    assert epoch_batches([10, 20, 30], 10, 2) == 3  # 1 + 2 + 3 crops
    assert epoch_batches([10, 20, 30], 10, 4, max_points=25) == 3  # two crops fit
    assert epoch_batches([10, 20, 30], 0, 4, max_points=30) == 2  # 60 points
    assert epoch_batches([1, 1, 1], 0, 1, max_points=30) == 3


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"max_points": 100}, r"view\.max_points 100: a, taken whole, has \d+ points; set view\.crop_points to 100 or"),
        (
            {"max_points": 100, "crop_points": 120},
            r"view\.max_points 100: a crop of a has 120 points; set .* to 100 or",
        ),
    ],
)
def test_a_sample_that_is_too_large_is_refused_before_anything_is_written(make_config, tmp_path, view, message):
    with pytest.raises(ValueError, match=message):
        Trainer(make_config(view=view), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_a_run_within_a_budget_of_points_goes_on_to_the_same_bytes(make_config, tmp_path, monkeypatch):
    config = make_config(view={"batch": 5, "max_points": 400}, schedule={"steps": 3})
    Trainer(config, tmp_path / "whole", CPU).run()
    run, original, steps = Trainer(config, tmp_path / "cut", CPU), Trainer._gradients, []

    def gradients(self, *arguments):
        steps.append(1)
        if len(steps) == 5:
            self.interrupt.asked = 15
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_gradients", gradients)
    with pytest.raises(Stopped):
        run.run()
    Trainer(config, tmp_path / "cut", CPU, resume=True).run()
    for name in ("metrics.json", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


def test_a_run_begun_before_a_setting_existed_goes_on(make_config, tmp_path):
    """What its configuration leaves out has the value that changes nothing."""
    config = make_config()
    lines = dump(config).splitlines(keepends=True)
    older = "".join(line for line in lines if not line.startswith("  max_points:"))
    assert older != dump(config)
    require_same_settings(tmp_path / "config.yaml", older, config)
    with pytest.raises(ValueError, match=r"'max_points: 0' became 'max_points: 900'"):
        require_same_settings(tmp_path / "config.yaml", older, make_config(view={"max_points": 900}))
