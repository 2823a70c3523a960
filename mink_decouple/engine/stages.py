"""The schedule that a configuration asks for."""

from __future__ import annotations

from mink_decouple.config import Config
from mink_decouple.decouple.schedule import Stage, build_schedule


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The schedule of a configuration."""
    s = config.schedule
    return build_schedule(
        s.mode,
        s.pretrain.epochs,
        s.iterations,
        s.i_step.epochs,
        s.ii_step.epochs,
        s.pretrain.lr,
        s.i_step.lr,
        s.ii_step.lr,
        s.policy,
        s.decay,
        s.warmup,
        config.pseudo.refresh,
        "mixed" if config.ii.feature != "none" else config.ii.labels,
    )
