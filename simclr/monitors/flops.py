"""A network's settings come in; the arithmetic of one training step goes out, counted once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from simclr.choices import BatchNormGroup
from simclr.config import ModelConfig
from simclr.model.simclr import SimCLR

_VIEWS = 2


def flop_per_view(config: ModelConfig, num_bands: int, view_size_px: int) -> float:
    """Count the floating-point operations of forward and backward for one view.

    Counted on shapes alone, so it costs neither memory nor arithmetic. What activation
    checkpointing computes twice counts once: it is no progress.
    """
    plain = replace(config, batchnorm=BatchNormGroup.none, activation_checkpointing=False)
    with torch.device("meta"):
        network = SimCLR(plain, num_bands)
        views = torch.empty(_VIEWS, num_bands, view_size_px, view_size_px)
    with FlopCounterMode(display=False) as counter:
        network(views)[1].sum().backward()
    return float(counter.get_total_flops()) / _VIEWS
