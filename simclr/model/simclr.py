"""Encoder and projection head as one network: views in, (h, z) out."""

from __future__ import annotations

import torch
from torch import nn

from simclr.choices import BatchNormGroup
from simclr.collectives import Group
from simclr.config import ModelConfig
from simclr.model.batchnorm import join_statistics
from simclr.model.encoder import WIDTHS, build_encoder
from simclr.model.head import build_head
from simclr.model.recompute import recompute_blocks


class SimCLR(nn.Module):
    """Both views go through in one forward pass: BatchNorm must not tell them apart.

    Args:
        config: architecture.
        num_bands: input channels.
        node: ranks of this node, for ``batchnorm=node``.

    Attributes:
        encoder: what is kept and exported.
        head: thrown away after pretraining.
    """

    def __init__(self, config: ModelConfig, num_bands: int, node: Group = None) -> None:
        super().__init__()
        self.encoder = build_encoder(config, num_bands)
        width = WIDTHS[config.encoder.value]
        self.head = build_head(config.head, width, config.projection_size)
        if config.batchnorm is not BatchNormGroup.none:
            join_statistics(self, node if config.batchnorm is BatchNormGroup.node else None)
        if config.activation_checkpointing:
            recompute_blocks(self.encoder)

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return representations h (2B, width) and projections z (2B, projection_size)."""
        h = self.encoder(views)
        return h, self.head(h)
