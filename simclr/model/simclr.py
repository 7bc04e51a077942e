"""Encoder and projection head as one network: views in, (h, z) out."""

from __future__ import annotations

import torch
from torch import nn

from simclr.choices import BatchNormGroup
from simclr.config import ModelConfig
from simclr.model.batchnorm import use_world_statistics
from simclr.model.encoder import WIDTHS, build_encoder
from simclr.model.head import build_head


class SimCLR(nn.Module):
    """Both views go through in one forward pass: BatchNorm must not tell them apart.

    Attributes:
        encoder: what is kept and exported.
        head: thrown away after pretraining.
    """

    def __init__(self, config: ModelConfig, num_bands: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config, num_bands)
        width = WIDTHS[config.encoder.value]
        self.head = build_head(config.head, width, config.projection_size)
        if config.batchnorm is BatchNormGroup.world:
            use_world_statistics(self)

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return representations h (2B, width) and projections z (2B, projection_size)."""
        h = self.encoder(views)
        return h, self.head(h)
