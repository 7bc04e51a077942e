"""Band normalisation: z = (x - mean) / std with the statistics of a patch's source.

Views, cards and exported encoders take mean and std from here; exports also the formula, which
``simclr.augment.views`` computes itself, in place and per band group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from preprocess.shards.format import NODATA

Statistics = Mapping[str, Mapping[str, float]]  # mean and std of each band, in stored values

# A constant band has no information; one stored unit instead of zero keeps it finite.
_SMALLEST_STD = 1.0


def usable(statistics: Statistics) -> dict[str, dict[str, float]]:
    """Return mean and std of each band as used in normalisation, with std at least 1."""
    return {
        band: {"mean": one["mean"], "std": max(one["std"], _SMALLEST_STD)}
        for band, one in statistics.items()
    }


def mean_and_std(
    statistics: Statistics, bands: Sequence[str], scale: float = 1
) -> tuple[Tensor, Tensor]:
    """Return mean and std of the bands, each (C,) float32, in stored values / ``scale``."""
    table = usable(statistics)
    mean, std = (
        torch.tensor([table[band][key] / scale for band in bands]) for key in ("mean", "std")
    )
    return mean, std


class Normalised(nn.Module):
    """An encoder preceded by normalisation: mean and std (C,) of a source, in the patches' unit."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("std", std.reshape(-1, 1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """Return h (B, width) of patches (B, C, S, S) float32; nodata is replaced by the mean."""
        views = torch.where(patches == NODATA, 0.0, (patches - self.mean) / self.std)
        h: Tensor = self.encoder(views)
        return h
