"""Contrast, gain, brightness and noise on normalised views, each with its meaning in reflectance.

A view is z = (x - mean) / std of its source's band. Operations on the reflectance x are carried
out on z: a gain g becomes ``g z + (g - 1) mean / std``, multiplicative noise of strength s becomes
``z + s n (z + mean / std)``.
"""

from __future__ import annotations

import math

import torch

from simclr.augment.draws import ViewParameters
from simclr.philox import philox

NOISE_VALUES = 2**21
_WINDOW_STEP = 16  # windows begin at multiples of this many values
IMPULSE_SIGMAS = 5.0  # the 2021 speckle set single pixels to plus or minus five sigma


def adjust(
    views: torch.Tensor, parameters: ViewParameters, level: torch.Tensor, *, gain_on_z: bool
) -> torch.Tensor:
    """Apply contrast, gain and brightness, in this order, in one pass.

    Args:
        views: (N, S, C, S), normalised.
        parameters: of the N views.
        level: (N, C), mean / std of each view's source.
        gain_on_z: the gain of 2021 multiplied the normalised value, not the reflectance.
    """
    mean = views.mean(dim=(1, 3))  # (N, C)
    contrast, gain = parameters.contrast[:, None], parameters.gain
    slope = contrast * gain
    shift = gain * (1 - contrast) * mean + parameters.brightness[:, None]
    if not gain_on_z:
        shift = shift + (gain - 1) * level
    return torch.addcmul(shift[:, None, :, None], views, slope[:, None, :, None])


def add_speckle(
    views: torch.Tensor, parameters: ViewParameters, level: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Multiply the reflectance by 1 + s n: views and noise are (N, S, C, S), level is (N, C)."""
    strength = parameters.speckle[:, None, None, None] * noise
    return views + strength * (views + level[:, None, :, None])


def add_impulses(
    views: torch.Tensor, parameters: ViewParameters, noise: torch.Tensor
) -> torch.Tensor:
    """Set a share of the pixels to each extreme: salt and pepper, called speckle in 2021."""
    # A standard normal exceeds this limit with probability p.
    tail = (1 - 2 * parameters.impulse).clamp(max=1)
    limit = (math.sqrt(2) * torch.erfinv(tail))[:, None, None, None]
    salted = torch.where(noise > limit, IMPULSE_SIGMAS, views)
    return torch.where(noise < -limit, -IMPULSE_SIGMAS, salted)


def noise_table(seed: int, device: torch.device) -> torch.Tensor:
    """Return ``NOISE_VALUES`` standard normals, made once on the CPU: equal on every device."""
    counter = torch.zeros(NOISE_VALUES // 4, 4, dtype=torch.int64)
    counter[:, 0] = torch.arange(NOISE_VALUES // 4)
    counter[:, 3] = 2**32 - 1  # far from the blocks that parameters are drawn from
    words = philox(counter, seed).flatten()
    uniform = ((words >> 8).to(torch.float64) + 0.5) * 2.0**-24
    radius, angle = uniform.view(2, -1)
    radius = (-2 * radius.log()).sqrt()  # Box and Muller 1958
    normals = torch.cat(
        [radius * (2 * math.pi * angle).cos(), radius * (2 * math.pi * angle).sin()]
    )
    return normals.to(torch.float32).to(device)


def noise_windows(table: torch.Tensor, window: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Cut each view's noise out of the table: (N,) uniforms and (N, S, C, S) to that shape.

    Drawing the place instead of the pixels keeps the noise a function of (seed, epoch, sample,
    view) at the price of one copy.
    """
    length = math.prod(shape[1:])
    windows = table.unfold(0, length, _WINDOW_STEP)  # a view: nothing is copied yet
    return windows[(window * len(windows)).long()].view(shape)
