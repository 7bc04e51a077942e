"""torchvision's ResNets for any number of bands: views (B, C, H, W) in, representations h out."""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet

from simclr.choices import Stem
from simclr.config import ModelConfig

WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}


def build_encoder(config: ModelConfig, num_bands: int) -> nn.Module:
    """Build an untrained encoder whose output is h, (B, width) float32.

    Parameter names are torchvision's, so that weights load into a plain
    ``torchvision.models.resnet50()`` with a first layer of ``num_bands`` channels and ``fc`` set
    to ``nn.Identity()``. Initialisation follows torch's global generator.
    """
    encoder: nn.Module = getattr(resnet, config.encoder.value)(weights=None)
    if config.stem is Stem.small:
        first = nn.Conv2d(num_bands, 64, kernel_size=3, stride=1, padding=1, bias=False)
        encoder.maxpool = nn.Identity()
    else:
        first = nn.Conv2d(num_bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    encoder.conv1 = first
    encoder.fc = nn.Identity()
    return encoder
