"""Contrast, gain, brightness and band drop: parameters of views in, one line a band out.

A normalised value is z = (x - mean) / std of its source's band. Operations on the reflectance x
are carried out on z: a gain g becomes ``g z + (g - 1) mean / std``.
"""

from __future__ import annotations

import math

import torch

from simclr.augment import parallel as lists
from simclr.augment.parameters import ViewParameters
from simclr.config import Variant
from simclr.philox import philox

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


NOISE_VALUES = 2**21
IMPULSE_SIGMAS = 5.0  # the 2021 speckle set single pixels to plus or minus five sigma
_WINDOW_STEP = 16  # windows begin at multiples of this many values


class Noise:
    """Standard normals on the device, and how a variant adds them."""

    def __init__(self, seed: int, device: torch.device, variant: Variant) -> None:
        self._table = noise_table(seed, device)
        self._variant = variant

    def add(
        self,
        values: torch.Tensor,
        parameters: ViewParameters,
        where: torch.Tensor,
        level: torch.Tensor,
        turn: float = 0.0,
    ) -> None:
        """Add to values (N, ...) the noise of their views, in place.

        Args:
            values: normalised.
            parameters: of the N views.
            where: bool, broadcasts to the values: which of them get any.
            level: mean / std of each value's source and band, broadcasts to the values.
            turn: moves every view's window, so that band groups get noise of their own.
        """
        each = (-1,) + (1,) * (values.ndim - 1)
        corrected = self._variant is Variant.corrected
        strength = (parameters.speckle if corrected else parameters.impulse).view(each) * where
        window = (parameters.noise_window + turn).remainder(1)
        level = level.expand(len(values), *level.shape[1:])
        rows = lists.listed(strength.flatten(1).any(1))
        if rows is None:
            values.copy_(self._noisy(values, strength, level, window))
            return
        values[rows] = self._noisy(values[rows], strength[rows], level[rows], window[rows])

    def _noisy(
        self,
        values: torch.Tensor,
        strength: torch.Tensor,
        level: torch.Tensor,
        window: torch.Tensor,
    ) -> torch.Tensor:
        noise = noise_windows(self._table, window, values.shape)
        if self._variant is Variant.corrected:
            return speckled(values, strength, level, noise)
        return salted(values, strength, noise)


def speckled(
    values: torch.Tensor, strength: torch.Tensor, level: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Multiply the reflectance by 1 + s n: on normalised values z + s n (z + mean / std)."""
    return torch.addcmul(values, noise * strength, values + level)


def salted(values: torch.Tensor, share: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Set a share of the values to each extreme: salt and pepper, called speckle in 2021."""
    # A standard normal exceeds this limit with probability p.
    limit = math.sqrt(2) * torch.erfinv((1 - 2 * share).clamp(max=1))
    bright = torch.where(noise > limit, IMPULSE_SIGMAS, values)
    return torch.where(noise < -limit, -IMPULSE_SIGMAS, bright)


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
    """Cut each view's noise out of the table: (N,) uniforms and (N, ...) to that shape.

    Drawing the place instead of the pixels keeps the noise a function of (seed, epoch, sample,
    view) at the price of one copy.
    """
    length = math.prod(shape[1:])
    windows = table.unfold(0, length, _WINDOW_STEP)  # a view: nothing is copied yet
    return windows[(window * len(windows)).long()].view(shape)
