"""Projection heads: representation h (B, width) in, projection z (B, projection_size) out."""

from __future__ import annotations

from torch import nn

from simclr.choices import HeadName


def build_head(name: HeadName, width: int, projection_size: int) -> nn.Module:
    """Build an untrained projection head."""
    if name is HeadName.post:
        # The head of the 2021 study: no normalisation between the layers.
        return nn.Sequential(
            nn.Linear(width, 1024),
            nn.ReLU(inplace=True),
            nn.Linear(1024, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, projection_size),
        )
    hidden = 1 if name is HeadName.simclr2 else 2
    layers: list[nn.Module] = []
    for _ in range(hidden):
        # BatchNorm brings its own bias.
        layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.Linear(width, projection_size, bias=False))
