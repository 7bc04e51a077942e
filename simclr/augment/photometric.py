"""Contrast, gain, brightness, band drop and noise on normalised values.

A normalised value is z = (x - mean) / std of its source's band. Operations on the reflectance x are
carried out on z: a gain g becomes ``g z + (g - 1) mean / std``.
"""

from __future__ import annotations

import math

import torch

from simclr.augment.parameters import ViewParameters, selected
from simclr.philox import Philox


def joined_line(
    parameters: ViewParameters,
    level: torch.Tensor,
    view_mean: torch.Tensor,
    patch_mean: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join all lines of a view and its dropped bands to one line a band: z becomes a z + c.

    Args:
        parameters: of N views.
        level: (N, C), mean / std of each view's source.
        view_mean: (N, C), mean of each band in the view.
        patch_mean: (N, C), of the whole patch, for the lines that come before the geometry.

    Returns:
        a and c, each (N, C).
    """
    slope, shift = torch.ones_like(level), torch.zeros_like(level)
    for number, line in enumerate(parameters.lines.unbind(1)):
        factor, added, of_light, of_mean = line.unbind(1)
        mean = view_mean
        if parameters.line_of_patch is not None and patch_mean is not None:
            first = parameters.line_of_patch[:, number, None]
            mean = torch.where(first, patch_mean, view_mean)
        now = torch.addcmul(shift, slope, mean)  # after the lines so far
        slope = factor * slope
        shift = factor * shift + added + of_light * level + of_mean * now
    if parameters.keep is None:
        return slope, shift
    return slope * parameters.keep, shift * parameters.keep


NOISE_VALUES = 2**21
_WINDOW_STEP = 16  # windows begin at multiples of this many values


class Noise:
    """Multiplicative noise from a table of standard normals on the device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._table = noise_table(seed, device)

    def add(
        self,
        values: torch.Tensor,
        strength: torch.Tensor,
        level: torch.Tensor,
        window: torch.Tensor,
    ) -> None:
        """Multiply the reflectance of N views by 1 + s n, in place.

        Args:
            values: (N, ...) normalised.
            strength: (N, ...) s, broadcasts to the values; 0 changes nothing.
            level: (N, ...) mean / std of each value's source and band, broadcasts to the values.
            window: (N,) uniforms in [0, 1): which n.
        """
        rows = selected(strength.flatten(1).any(1))
        if rows is None:
            noise = noise_windows(self._table, window, values.shape)
            values.copy_(speckled(values, strength, level, noise))
        elif len(rows):
            some = values[rows]
            noise = noise_windows(self._table, window[rows], some.shape)
            values[rows] = speckled(some, strength[rows], level[rows], noise)


def speckled(
    values: torch.Tensor, strength: torch.Tensor, level: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Multiply the reflectance by 1 + s n: on normalised values z + s n (z + mean / std)."""
    return torch.addcmul(values, noise * strength, values + level)


def noise_table(seed: int, device: torch.device) -> torch.Tensor:
    """Return ``NOISE_VALUES`` standard normals, made once on the CPU: equal on every device."""
    counter = torch.zeros(NOISE_VALUES // 4, 4, dtype=torch.int64)
    counter[:, 0] = torch.arange(NOISE_VALUES // 4)
    counter[:, 3] = 2**32 - 1  # far from the blocks that parameters are drawn from
    words = Philox(seed).words(counter).flatten()
    uniform = ((words >> 8).to(torch.float64) + 0.5) * 2.0**-24
    radius, angle = uniform.view(2, -1)
    radius = (-2 * radius.log()).sqrt()  # Box and Muller 1958
    normals = torch.cat(
        [radius * (2 * math.pi * angle).cos(), radius * (2 * math.pi * angle).sin()]
    )
    return normals.to(torch.float32).to(device)


def noise_windows(table: torch.Tensor, window: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Cut each view's noise out of the table: (N,) uniforms and (N, ...) to that shape.

    Drawing the window instead of the pixels keeps the noise a function of (seed, epoch, sample,
    view) at the price of one copy.
    """
    length = math.prod(shape[1:])
    windows = table.unfold(0, length, _WINDOW_STEP)  # a view: nothing is copied yet
    return windows[(window * len(windows)).long()].view(shape)
