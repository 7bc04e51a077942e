"""The learning rate as a pure function of the step: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

import math

from simclr.choices import RateScaling, Schedule
from simclr.config import OptimConfig


def peak_rate(config: OptimConfig, global_batch_size: int) -> float:
    """Return the highest rate, scaled to the global batch in pairs."""
    ratio = global_batch_size / config.reference_batch_size
    factor = {
        RateScaling.none: 1.0,
        RateScaling.sqrt: math.sqrt(ratio),
        RateScaling.linear: ratio,
    }[config.scaling]
    return config.learning_rate * factor


def learning_rate(step: int, num_steps: int, warmup_steps: int, config: OptimConfig) -> float:
    """Return the rate as a share of the peak in [0, 1] for a step in [0, num_steps).

    Linear warm-up reaches 1 at the last warm-up step; the cosine would reach 0 one step after the
    last (Loshchilov and Hutter 2017, without restarts).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule is Schedule.constant:
        return 1.0
    decay_steps = config.decay_steps or max(1, num_steps - warmup_steps)
    # a cosine would rise again after its end
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    return (1 + math.cos(math.pi * progress)) / 2
