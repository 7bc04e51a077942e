"""Signs of collapse in the projections of a step: (2B, D) in, a few scalars out.

A contrastive loss can fall while all projections draw together; these numbers cannot.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

COLLAPSED_DEVIATION = 0.2
COLLAPSED_COSINE = 0.9


@torch.no_grad()
def spread(projections: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return deviation, mean cosine and alignment as tensors on the device.

    deviation: mean over dimensions of the standard deviation of unit projections, times sqrt(D);
    1 for directions spread evenly, 0 when all are equal. mean_cosine: over all distinct rows; near
    0, or 1 when all are equal. alignment: mean squared distance of positives (Wang and Isola 2020).
    """
    unit = F.normalize(projections.float(), dim=1)
    num, width = unit.shape
    first, second = unit.chunk(2)
    total = unit.sum(0)
    return {
        "deviation": unit.std(0).mean() * math.sqrt(width),
        "mean_cosine": (total @ total - num) / (num * (num - 1)),
        "alignment": (first - second).square().sum(1).mean(),
    }


def collapse_in_words(record: dict[str, float]) -> str:
    """Return a warning if the numbers of an interval show a collapse, else an empty text."""
    deviation, cosine = record["deviation"], record["mean_cosine"]
    if deviation >= COLLAPSED_DEVIATION or cosine <= COLLAPSED_COSINE:
        return ""
    return (
        f"projections have collapsed at step {record['step']:.0f}: deviation {deviation:.3f} "
        f"(1 is healthy), mean cosine {cosine:.3f} (0 is healthy); lower optim.learning_rate or "
        "add warm-up"
    )
