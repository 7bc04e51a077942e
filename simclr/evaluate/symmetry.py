"""Views come in, turned and flipped; a network comes in, and one that averages over that goes out.

A patch has no upper side: the 8 symmetries of the square lose nothing and make nothing up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simclr.evaluate.features import Embedder
from simclr.philox import uniforms

NUM_SYMMETRIES = 8


def turned(views: Tensor, symmetry: Tensor) -> Tensor:
    """Return views (B, C, S, S), each under its own symmetry (B,) in [0, 8)."""
    transpose, rows, columns = (
        (symmetry // step % 2).bool()[:, None, None, None] for step in (4, 2, 1)
    )
    views = torch.where(transpose, views.transpose(2, 3), views)
    views = torch.where(rows, views.flip(2), views)
    return torch.where(columns, views.flip(3), views)


def draw_symmetries(seed: int, epoch: int, sample_id: Tensor) -> Tensor:
    """Return one of the 8 symmetries for each sample (B,): a function of its arguments alone."""
    drawn = uniforms(seed, epoch, sample_id, torch.zeros_like(sample_id), 1)[:, 0]
    return (drawn * NUM_SYMMETRIES).long()


def averaged(network: Embedder) -> Embedder:
    """Return a network whose output is the mean over the 8 symmetries of a view."""

    def embed(views: Tensor) -> Tensor:
        """Return (B, D), eight times as dear as one pass."""
        total: Tensor = sum(  # type: ignore[assignment]
            network(turned(views, torch.full((len(views),), k, device=views.device)))
            for k in range(NUM_SYMMETRIES)
        )
        return total / NUM_SYMMETRIES

    return embed
