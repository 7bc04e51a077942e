"""Contrast, gain, brightness and band drop: parameters of views in, one line a band out.

A normalised value is z = (x - mean) / std of its source's band. Operations on the reflectance x
are carried out on z: a gain g becomes ``g z + (g - 1) mean / std``.
"""

from __future__ import annotations

import torch

from simclr.augment.draws import ViewParameters

LINES = frozenset({"contrast", "gain", "brightness"})


def band_lines(
    parameters: ViewParameters,
    channel: torch.Tensor,
    mean: torch.Tensor,
    level: torch.Tensor,
    *,
    gain_on_z: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the operations on some bands as one line a band: z becomes a z + c.

    Contrast may come anywhere: about the mean it commutes with the two others.

    Args:
        parameters: of N views.
        channel: (C,), which of their bands.
        mean: (N, C), the mean that contrast acts about.
        level: (N, C), mean / std of each view's source.
        gain_on_z: the gain of 2021 multiplied the normalised value, not the reflectance.

    Returns:
        a and c, each (N, C).
    """
    contrast, gain = parameters.contrast[:, None], parameters.gain[:, channel]
    brightness, first = parameters.brightness[:, None], parameters.brightness_first[:, None]
    slope = contrast * gain
    shift = gain * (1 - contrast) * mean + torch.where(first, gain, 1.0) * brightness
    if not gain_on_z:
        shift = shift + (gain - 1) * level
    keep = parameters.keep[:, channel]
    return slope * keep, shift * keep
