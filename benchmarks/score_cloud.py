"""Scoring every raw point of one large cloud with each backbone: how long it takes, and where the time goes.

    python benchmarks/score_cloud.py --points 1000000

The cloud is rooms of the synthetic buildings side by side, as densely scanned as those that `tools/train.py` trains on;
configuration and number of votes are that command's too. The weights are drawn, not trained, which takes as long.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from harness import Case, parser, run, say
from point_scenes import building
from stopwatch import BESIDE, Stopwatch

from mink_decouple.config import load_config
from mink_decouple.data.classes import S3DIS
from mink_decouple.data.cloud import PointCloud
from mink_decouple.engine import predict as predict_module
from mink_decouple.engine import scenes as scenes_module
from mink_decouple.engine.evaluate import make_model
from mink_decouple.models.segmenter import Segmenter

CPU = torch.device("cpu")


def score(cloud: PointCloud, backbone: str, args: argparse.Namespace) -> Case:
    """Seconds of each part, of all of them, and what they worked on."""
    config = load_config(args.config, backbone=backbone)
    classes, votes = len(S3DIS.names), args.votes or config.eval.votes
    model = make_model(config, S3DIS)
    watch = Stopwatch()
    passes = 0

    def waited(*arguments: Any) -> Iterator[Any]:
        nonlocal passes
        for item in watch.iterate(ahead(*arguments), "waiting for batches"):
            passes += 1
            yield item

    cut, ahead = predict_module.crops, predict_module.prefetch
    places = (
        (scenes_module, "subsample", "grid sub-sampling"),
        (scenes_module, "derive_features", "derived features"),
        (predict_module, "make_batch", "voxels or neighbours of a crop"),
        (Segmenter, "forward", "network"),
    )
    began = time.perf_counter()
    with watch.watching(*places):
        predict_module.crops, predict_module.prefetch = watch.wrapped(cut, "cutting crops"), waited
        try:
            scene = scenes_module.prepare(cloud, config)
            with watch("votes"):
                chances = predict_module.probabilities(model, config, scene, classes, CPU, votes)
        finally:
            predict_module.crops, predict_module.prefetch = cut, ahead
    with watch("projection to raw points"):
        best = chances.argmax(1)
        predicted = np.concatenate([best[points] for points in scene.point_blocks()])
    total = time.perf_counter() - began
    assert len(predicted) == len(cloud)
    spent = watch.take()
    beside = {name: spent.pop(name) for name in list(spent) if BESIDE in name}
    rate = len(cloud) / total
    facts = f"{len(scene.grid):,} grid points of {100 * config.data.grid:.0f} cm, {votes} votes, {passes} passes in all"
    case = Case(f"{backbone} {config.model.variant}, {cloud.name}, s", f"{facts}, {rate:,.0f} raw points a second")
    case.values = {**dict(sorted(spent.items(), key=lambda item: -item[1])), "in all": total, **beside}
    return case


def measure(args: argparse.Namespace) -> Iterator[Case]:
    """Each backbone on the same cloud; one small cloud before, which compiles."""
    rays = load_config(args.config).data.synthetic.points_per_room
    large = building(3000 if args.quick else args.points, rays=2000 if args.quick else rays, different=8)
    for backbone in args.backbones:
        say(f"  {backbone}")
        score(building(1000, rays=2000, different=1), backbone, args)
        yield score(large, backbone, args)


def main() -> int:
    """Measure and print the tables."""
    made = parser(__doc__)
    made.add_argument("--config", help="by default the one of tools/train.py")
    made.add_argument("--backbones", nargs="+", default=["minkunet", "randla"])
    made.add_argument("--points", type=int, default=1_000_000)
    made.add_argument("--votes", type=int, default=0, help="by default as configured")
    return run(made, measure, pin=False)


if __name__ == "__main__":
    sys.exit(main())
