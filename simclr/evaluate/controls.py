"""An architecture comes in; embedders without any pretraining go out, to stand beside it.

A pretrained encoder that does not beat these has learnt nothing that the pixels did not say.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from simclr.config import ModelConfig
from simclr.model.encoder import build_encoder

RANDOM_ENCODER = "random encoder"
RANDOM_CONVOLUTIONS = "random convolutions"
IMAGE_STATISTICS = "image statistics"

NUM_FILTERS = 256
PERCENTILES = (0.1, 0.5, 0.9)
_PERCENTILE_STEP_PX = 4  # a sixteenth of the pixels orders a band as well, and much faster


def random_encoder(
    config: ModelConfig, num_bands: int, seed: int, device: torch.device
) -> nn.Module:
    """Build the run's architecture with random weights, in evaluation mode.

    Its BatchNorm has never seen a batch, so it passes activations through unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(config, num_bands)
    return encoder.to(device).eval().requires_grad_(False)


class RandomConvolutions(nn.Module):
    """One layer of Gaussian 3x3 filters of stride 2, both signs rectified, averaged over the view.

    Views (B, C, H, W) to (B, 512). The idea is that of Rolf et al. 2021 (MOSAIKS,
    doi 10.1038/s41467-021-24638-z), with filters drawn rather than cut from patches.
    """

    def __init__(self, num_bands: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.filters = nn.Conv2d(num_bands, NUM_FILTERS, kernel_size=3, stride=2)
        scale = 1 / math.sqrt(self.filters.weight[0].numel())
        nn.init.normal_(self.filters.weight, std=scale, generator=generator)
        nn.init.uniform_(self.filters.get_parameter("bias"), -1, 1, generator=generator)

    def forward(self, views: Tensor) -> Tensor:
        """Return (B, 512) features."""
        response = self.filters(views)
        return torch.cat([response.relu(), (-response).relu()], dim=1).mean(dim=(2, 3))


def random_convolutions(num_bands: int, seed: int, device: torch.device) -> nn.Module:
    """Build random convolution features, in evaluation mode."""
    return RandomConvolutions(num_bands, seed).to(device).eval().requires_grad_(False)


def image_statistics(views: Tensor) -> Tensor:
    """Return mean, standard deviation and 10, 50, 90 % percentiles of every band: (B, 5 C)."""
    pixels = views.flatten(2)
    sparse = views[:, :, ::_PERCENTILE_STEP_PX, ::_PERCENTILE_STEP_PX].flatten(2)
    ordered = sparse.sort(dim=2).values
    ranks = [round(share * (ordered.shape[2] - 1)) for share in PERCENTILES]
    moments = torch.stack([pixels.mean(dim=2), pixels.std(dim=2, correction=0)], dim=2)
    return torch.cat([moments, ordered[:, :, ranks]], dim=2).flatten(1)
