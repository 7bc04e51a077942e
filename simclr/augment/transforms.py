"""Applies drawn parameters to pixels: warp, resampling and blur in one pass, lines, noise.

Every pixel of a view is traced back through the chain of maps to its position in the patch, and
reflected into the frame at each map. With quarter turns, rows and columns are traced separately
and a view is ``R x C^T`` for every band, with resampling and blur in the two matrices; for free
rotation, the positions are sampled individually.

Positions are in half pixels of the view, so that the patch spans [-S, S], pixel ``i`` of a view is
centred at ``2 i + 1 - S``, and the identity is exact.

A normalised value is z = (x - mean) / std of its source's band. Operations on the reflectance x are
applied to z: a gain g becomes ``g z + (g - 1) mean / std``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr.augment.parameters import Preset, ViewParameters, selected
from simclr.config import Rotation
from simclr.philox import Philox


class Axes(NamedTuple):
    """The origin of the rows and columns of N views in their operands."""

    transposed: Tensor  # (N,) bool, whether the rows of a view run along the operand's columns
    # (2, N, S) of each row, and of each column, on the operand's axis, in half pixels of the view
    positions: Tensor
    scales: Tensor  # (2, N) operand pixels per view pixel, if both had the same size


@dataclass(frozen=True, slots=True)
class Frame:
    """The geometry and blur of the views of a batch, shared by all band groups."""

    origin: Axes | Tensor  # of pixels: along axes, or (N, S, S, 2) points for free rotation
    # left factors of the row and column matrices: blur, and the maps after it; (N, S, S) each
    mixing: tuple[Tensor, Tensor] | None
    mixed: Tensor | None = None  # (M,) views that ``mixing`` (then (M, S, S)) is for; None: all

    def lay_out(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the arguments of ``warp`` for a band group: its patches, R and C.

        Patches are (N, n, c, n) and may be overwritten; the rows of the matrices sum to 1.
        """
        if isinstance(self.origin, Tensor):
            sampled = F.grid_sample(
                patches.permute(0, 2, 1, 3),
                self.origin,
                padding_mode="border",  # only half pixels at the edges are still outside
                align_corners=False,
            )
            patches = sampled.permute(0, 3, 1, 2).contiguous()
            one = torch.eye(patches.shape[1], device=patches.device).expand(len(patches), -1, -1)
            return patches, *(self.mixing or (one, one))
        axes = self.origin
        rows, columns = resampling(axes.positions, axes.scales, patches.shape[1]).unbind(0)
        if self.mixing is not None:
            rows, columns = self._mix(self.mixing[0], rows), self._mix(self.mixing[1], columns)
        return columns_first(patches, axes.transposed), rows, columns

    def _mix(self, mixing: Tensor, matrix: Tensor) -> Tensor:
        if self.mixed is None:
            return mixing @ matrix
        matrix[self.mixed] = mixing @ matrix[self.mixed]
        return matrix


def frame_of(parameters: ViewParameters, preset: Preset, view_px: int) -> Frame:
    """Return the frame of N views of side ``view_px``."""
    free = preset.rotation is Rotation.free and "rotation" in preset.operations
    may_blur, sigma = "blur" in preset.operations, parameters.blur
    if parameters.blurred_after is not None and not free:
        return _blurred_between(parameters.maps, parameters.blurred_after, sigma, view_px)
    mixed = selected(sigma > 0) if may_blur and not free else None
    sigma = sigma if mixed is None else sigma[mixed]
    blur = blur_matrix(sigma, view_px) if may_blur else None
    mixing = None if blur is None else (blur, blur)
    if free:
        # Isotropic blur commutes with rotation, so it comes last, even if a zoom should follow it.
        return Frame(trace_points(parameters.maps, view_px), mixing)
    return Frame(trace_axes(parameters.maps, view_px), mixing, mixed)


def _blurred_between(maps: Tensor, blurred_after: Tensor, sigma: Tensor, view_px: int) -> Frame:
    """Return the frame of views, some of which are blurred before some of their maps."""
    identity = torch.eye(2, 3, device=maps.device)
    number = torch.arange(maps.shape[1], device=maps.device)
    before = (number < blurred_after[:, None])[:, :, None, None]
    first = trace_axes(torch.where(before, maps, identity), view_px)
    then = trace_axes(torch.where(before, identity, maps), view_px)
    axes = _exchanged(first, then.transposed)
    axes = axes._replace(transposed=first.transposed ^ then.transposed)
    rows, columns = resampling(then.positions, then.scales, view_px).unbind(0)
    blur = blur_matrix(sigma, view_px)
    return Frame(axes, (rows @ blur, columns @ blur))


def _exchanged(axes: Axes, flags: Tensor) -> Axes:
    """Swap the rows and columns of the flagged views."""
    return Axes(
        axes.transposed,
        torch.where(flags[:, None], axes.positions.flip(0), axes.positions),
        torch.where(flags, axes.scales.flip(0), axes.scales),
    )


def trace_axes(maps: Tensor, view_px: int) -> Axes:
    """Trace rows and columns back through maps (N, K, 2, 3) without free rotation."""
    positions = _trace(maps, view_px, _centres(view_px, maps.device).expand(2, len(maps), -1))
    # The product of the absolute maps; without free rotation, each row has one zero entry.
    size = torch.eye(2, device=maps.device).expand(len(maps), 2, 2)
    for linear in maps[..., :2].abs().unbind(1):
        size = size @ linear
    transposed = size[:, 0, 1] > 0
    # After a transposition, the operand's y axis depends on the column of the view.
    return _exchanged(Axes(transposed, positions, size.sum(2).T), transposed)


def trace_points(maps: Tensor, view_px: int) -> Tensor:
    """Return the position of every pixel of N views for ``F.grid_sample``: (N, S, S, 2)."""
    centres = _centres(view_px, maps.device)
    square = torch.stack(torch.meshgrid(centres, centres, indexing="ij"))  # y and x of each pixel
    positions = _trace(maps, view_px, square[:, None].expand(2, len(maps), -1, -1))
    return positions.flip(0).movedim(0, -1) / view_px


def _trace(maps: Tensor, view_px: int, positions: Tensor) -> Tensor:
    """Trace positions y and x (2, N, ...) back through the maps, from the last to the first.

    Both share operations, each of which is a launch on a GPU.
    """
    shape = (2, 3, len(maps)) + (1,) * (positions.ndim - 2)
    for affine in reversed(maps.unbind(1)):
        of_y, of_x, offset = affine.permute(1, 2, 0).reshape(shape).unbind(1)
        y, x = positions.unbind(0)
        moved = of_y * y + of_x * x + offset * view_px
        # reflect positions outside [-S, S]
        positions = view_px - ((moved + view_px).remainder(4 * view_px) - 2 * view_px).abs()
    return positions


def _centres(view_px: int, device: torch.device) -> Tensor:
    return 2.0 * torch.arange(view_px, device=device) + (1 - view_px)


def resampling(position: Tensor, scale: Tensor, native_px: int) -> Tensor:
    """Return interpolation matrices for positions (..., S), scales (...): (..., S, native_px).

    Bilinear if the view is finer than the grid, else a wider triangle that averages pixels.
    """
    ratio = native_px / position.shape[-1]
    # The outer half pixel at either edge has the edge's value.
    index = ((position * ratio + (native_px - 1)) / 2).clamp(0, native_px - 1)
    pixels = torch.arange(native_px, device=position.device, dtype=torch.float32)
    width = (scale * ratio).clamp(min=1)[..., None, None]
    weight = (index[..., None] - pixels).abs_().div_(width).neg_().add_(1).clamp_(min=0)
    return weight.div_(weight.sum(-1, keepdim=True))


def columns_first(patches: Tensor, transposed: Tensor) -> Tensor:
    """Arrange patches for ``warp``: rows, bands, columns (N, n, C, n) to columns, bands, rows.

    Those of transposed views already are. May overwrite the patches.
    """
    exchanged = selected(~transposed)
    if exchanged is None:
        return torch.where(transposed[:, None, None, None], patches, patches.permute(0, 3, 2, 1))
    patches[exchanged] = patches[exchanged].permute(0, 3, 2, 1)
    return patches


def warp(patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply the matrices to patches arranged by ``columns_first``: (N, n, C, n) to (N, S, S, C).

    Both products cover all bands of a view at once, without copies of the matrices per band.
    Columns go first, so that the smaller intermediate is rearranged.
    """
    num, native, bands, _ = patches.shape
    half = columns @ patches.reshape(num, native, bands * native)  # (N, S, C * n)
    half = half.view(num, -1, bands, native).permute(0, 3, 1, 2)  # (N, n, S, C)
    view = rows @ half.reshape(num, native, -1)  # (N, S, S * C)
    return view.view(num, rows.shape[1], columns.shape[1], bands)


def mean_of_view(patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the mean of ``warp``'s result without computing it: (N, C).

    Patches are (N, n, C, n), arranged by ``columns_first``; ``rows`` and ``columns`` (N, n) are
    the means of the rows of each matrix.
    """
    num, native, bands, _ = patches.shape
    line = columns[:, None] @ patches.reshape(num, native, bands * native)  # (N, 1, C * n)
    return (line.view(num, bands, native) @ rows[:, :, None]).squeeze(2)


def blur_matrix(sigma: Tensor, size_px: int) -> Tensor:
    """Return matrices of Gaussian blur along one axis, with reflection: (N, size_px, size_px).

    Sigma (N,) is in pixels; 0 gives the identity. Taps end at 3 sigma, rounded up.
    """
    radius = (3 * sigma).ceil()[:, None]
    spread = 2 * sigma.clamp(min=1e-3)[:, None] ** 2
    distance = torch.arange(2 * size_px, device=sigma.device, dtype=torch.float32)
    taps = torch.exp(-(distance**2) / spread) * (distance <= radius)  # (N, 2 size), one side
    # Entry i, j sums the taps at |i - j|, i + j + 1 and 2 n - 1 - i - j, since pixel j is mirrored
    # at the edges to -1 - j and 2 n - 1 - j. Sliding windows over the taps give such matrices
    # without index lookups.
    line = torch.cat([taps[:, 1:size_px].flip(1), taps[:, :size_px]], 1)
    direct = line.unfold(1, size_px, 1).flip(1)
    upper = taps.unfold(1, size_px, 1)[:, 1:]
    kernel = direct + upper + upper.flip(1, 2)
    return kernel.div_(kernel.sum(-1, keepdim=True))


def joined_line(
    parameters: ViewParameters,
    level: Tensor,
    view_mean: Tensor,
    patch_mean: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Combine all lines and dropped bands of a view into one line per band: z becomes a z + c.

    ``level`` is mean / std of each view's source, ``view_mean`` the mean of each band in the view,
    and ``patch_mean`` in the entire patch, for lines applied before the geometry. All arrays,
    including the results a and c, are (N, C).
    """
    slope, shift = torch.ones_like(level), torch.zeros_like(level)
    for number, line in enumerate(parameters.lines.unbind(1)):
        factor, added, of_light, of_mean = line.unbind(1)
        mean = view_mean
        if parameters.line_of_patch is not None and patch_mean is not None:
            first = parameters.line_of_patch[:, number, None]
            mean = torch.where(first, patch_mean, view_mean)
        now = torch.addcmul(shift, slope, mean)  # mean after the lines so far
        slope = factor * slope
        shift = factor * shift + added + of_light * level + of_mean * now
    if parameters.keep is None:
        return slope, shift
    return slope * parameters.keep, shift * parameters.keep


NOISE_VALUES = 2**21
_WINDOW_STEP = 16  # windows start at multiples of this


class Noise:
    """Multiplicative noise from a table of standard normals on the device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._table = noise_table(seed, device)

    def add(self, values: Tensor, strength: Tensor, level: Tensor, window: Tensor) -> None:
        """Multiply the reflectance of N normalised views (N, ...) by 1 + s n, in place.

        The strength s and the level, mean / std of each value's source and band, are broadcast to
        the values; ``window`` (N,) in [0, 1) selects n.
        """
        rows = selected(strength.flatten(1).any(1))
        if rows is None:
            noise = noise_windows(self._table, window, values.shape)
            values.copy_(speckled(values, strength, level, noise))
        elif len(rows):
            some = values[rows]
            noise = noise_windows(self._table, window[rows], some.shape)
            values[rows] = speckled(some, strength[rows], level[rows], noise)


def speckled(values: Tensor, strength: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Multiply the reflectance by 1 + s n: on normalised values z + s n (z + mean / std)."""
    return torch.addcmul(values, noise * strength, values + level)


def noise_table(seed: int, device: torch.device) -> Tensor:
    """Return ``NOISE_VALUES`` standard normals, computed on the CPU: equal on every device."""
    counter = torch.zeros(NOISE_VALUES // 4, 4, dtype=torch.int64)
    counter[:, 0] = torch.arange(NOISE_VALUES // 4)
    counter[:, 3] = 2**32 - 1  # far from the blocks used for parameters
    words = Philox(seed).words(counter).flatten()
    uniform = ((words >> 8).to(torch.float64) + 0.5) * 2.0**-24
    radius, angle = uniform.view(2, -1)
    radius = (-2 * radius.log()).sqrt()  # Box and Muller 1958
    turn = 2 * math.pi * angle
    return torch.cat([radius * turn.cos(), radius * turn.sin()]).to(torch.float32).to(device)


def noise_windows(table: Tensor, window: Tensor, shape: torch.Size) -> Tensor:
    """Return each view's noise, of the given shape (N, ...), from the table by uniforms (N,).

    Drawing a window instead of pixels keeps the noise a function of (seed, epoch, sample, view) at
    the cost of one copy.
    """
    length = math.prod(shape[1:])
    if length > len(table):  # large views: the table is repeated
        table = table.repeat(length // len(table) + 2)
    windows = table.unfold(0, length, _WINDOW_STEP)  # a tensor view: nothing is copied yet
    return windows[(window * len(windows)).long()].view(shape)
