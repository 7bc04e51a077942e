"""One warp from each native grid straight to the view: no upsampled image in between.

Every pixel of a view is traced back through the chain of maps to its place in the patch, folded
back into the frame at each map. As long as turns are quarter turns, rows and columns are traced
apart and a view is ``R x C^T`` for every band, with resampling and blur in the two matrices; for
free rotation the places are sampled one by one.

Places are in half pixels of the view, so that the patch spans [-S, S], pixel ``i`` of a view is
centred at ``2 i + 1 - S``, and the identity comes out without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from simclr.augment import parallel as lists
from simclr.augment.operations import MOTIONS, Preset
from simclr.augment.parameters import ViewParameters
from simclr.config import Rotation, Variant

_BLUR_TAPS_2021 = 2  # the 2021 code used five taps whatever the sigma


class Axes(NamedTuple):
    """Where the rows and the columns of N views come from.

    Attributes:
        transposed: (N,) bool, the rows of a view run along the columns of its operand.
        rows: (N, S) place of each row on the operand's axis, in half pixels of the view.
        columns: (N, S) likewise.
        scales: (N, 2) pixels of the operand a pixel of the view, rows and columns, at equal size.
    """

    transposed: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """How the views of a batch are made, in common for all band groups.

    Attributes:
        origin: where pixels come from: along axes, or (N, S, S, 2) points for free rotation.
        mixing: what is multiplied from the left to the rows' and columns' matrices: blur, and
            the maps after it; (N, S, S) each, or None.
        mixed: (M,) which views ``mixing`` is for, then (M, S, S) each; None: for all.
    """

    origin: Axes | torch.Tensor
    mixing: tuple[torch.Tensor, torch.Tensor] | None
    mixed: torch.Tensor | None = None

    def lay_out(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return a band group's patches as ``warp`` wants them, and its matrices R and C.

        Patches are (N, n, c, n) and may be overwritten; the matrices' rows add up to 1.
        """
        if isinstance(self.origin, torch.Tensor):
            patches = sample_points(patches, self.origin)
            one = torch.eye(patches.shape[1], device=patches.device).expand(len(patches), -1, -1)
            return patches, *(self.mixing or (one, one))
        native_px, axes = patches.shape[1], self.origin
        rows = resampling(axes.rows, axes.scales[:, 0], native_px)
        columns = resampling(axes.columns, axes.scales[:, 1], native_px)
        if self.mixing is not None:
            rows, columns = self._mix(self.mixing[0], rows), self._mix(self.mixing[1], columns)
        return columns_first(patches, axes.transposed), rows, columns

    def _mix(self, mixing: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        if self.mixed is None:
            return mixing @ matrix
        matrix[self.mixed] = mixing @ matrix[self.mixed]
        return matrix


def frame_of(parameters: ViewParameters, preset: Preset, view_px: int) -> Frame:
    """Return the frame of N views of side ``view_px``."""
    free = preset.rotation is Rotation.free and "rotation" in preset.operations
    radius = 0 if preset.variant is Variant.corrected else _BLUR_TAPS_2021
    may_blur, sigma = "blur" in preset.operations, parameters.blur
    if may_blur and not free and preset.may_precede("blur", frozenset(MOTIONS)):
        return _blurred_between(parameters, view_px, blur_matrix(sigma, view_px, radius))
    mixed = lists.listed(sigma > 0) if may_blur and not free else None
    sigma = sigma if mixed is None else sigma[mixed]
    blur = blur_matrix(sigma, view_px, radius) if may_blur else None
    mixing = None if blur is None else (blur, blur)
    if free:
        # A round blur commutes with turning, so it may always come last.
        return Frame(trace_points(parameters, view_px), mixing)
    axes = trace_axes(parameters, view_px, torch.ones_like(parameters.wrap))
    return Frame(axes, mixing, mixed)


def _blurred_between(parameters: ViewParameters, view_px: int, blur: torch.Tensor) -> Frame:
    """Return the frame of views of which some are moved after they were blurred."""
    place = torch.arange(parameters.wrap.shape[1], device=blur.device)
    before = place < parameters.blurred_after[:, None]
    first = trace_axes(parameters, view_px, before)
    then = trace_axes(parameters, view_px, ~before)
    swapped = then.transposed[:, None]
    axes = Axes(
        first.transposed ^ then.transposed,
        torch.where(swapped, first.columns, first.rows),
        torch.where(swapped, first.rows, first.columns),
        torch.where(swapped, first.scales.flip(1), first.scales),
    )
    rows = resampling(then.rows, then.scales[:, 0], view_px) @ blur
    columns = resampling(then.columns, then.scales[:, 1], view_px) @ blur
    return Frame(axes, (rows, columns))


def trace_axes(parameters: ViewParameters, view_px: int, use: torch.Tensor) -> Axes:
    """Trace rows and columns back through those maps of the chain that ``use`` (N, K) names."""
    centres = _centres(view_px, use.device)
    size = torch.ones(len(use), 1, device=use.device)
    zeros = torch.zeros(len(use), 1, device=use.device)
    y, x = _trace(parameters, view_px, use, (centres[None] + zeros, centres[None] + zeros))
    # The sizes of the maps, and which axes they exchange, by the same walk without offsets.
    scale_y, scale_x, transposed = size, size, size < 0
    for place in reversed(range(use.shape[1])):
        linear = parameters.linear[:, place].abs()
        linear = torch.where(use[:, place, None, None], linear, torch.eye(2, device=use.device))
        scale_y, scale_x = (
            linear[:, :1, 0] * scale_y + linear[:, :1, 1] * scale_x,
            linear[:, 1:, 0] * scale_y + linear[:, 1:, 1] * scale_x,
        )
        transposed = transposed ^ (linear[:, :1, 1] > 0)
    # An exchange leaves the place on the operand's y axis to depend on the column of the view.
    scales = torch.where(
        transposed, torch.cat([scale_x, scale_y], 1), torch.cat([scale_y, scale_x], 1)
    )
    rows, columns = torch.where(transposed, x, y), torch.where(transposed, y, x)
    return Axes(transposed[:, 0], rows, columns, scales)


def trace_points(parameters: ViewParameters, view_px: int) -> torch.Tensor:
    """Return the place of every pixel of the views as ``F.grid_sample`` wants it: (N, S, S, 2)."""
    use = torch.ones_like(parameters.wrap)
    centres = _centres(view_px, use.device)
    square = torch.zeros(len(use), view_px, view_px, device=use.device)
    y, x = _trace(parameters, view_px, use, (square + centres[:, None], square + centres))
    return torch.stack([x, y], -1) / view_px


def _trace(
    parameters: ViewParameters,
    view_px: int,
    use: torch.Tensor,
    start: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lead places (N, ...) back through the chain, from the last map to the first."""
    y, x = start
    shape = (-1,) + (1,) * (y.ndim - 1)
    identity = torch.eye(2, device=use.device)
    for place in reversed(range(use.shape[1])):
        used = use[:, place]
        linear = torch.where(used[:, None, None], parameters.linear[:, place], identity)
        offset = torch.where(used[:, None], parameters.offset[:, place], 0.0) * view_px
        wrap = (parameters.wrap[:, place] & used).view(shape)
        (yy, yx), (xy, xx) = (
            (entry.reshape(shape) for entry in row.unbind(1)) for row in linear.unbind(1)
        )
        y, x = (
            _fold(yy * y + yx * x + offset[:, 0].view(shape), view_px, wrap),
            _fold(xy * y + xx * x + offset[:, 1].view(shape), view_px, wrap),
        )
    return y, x


def _fold(place: torch.Tensor, view_px: int, wrap: torch.Tensor) -> torch.Tensor:
    """Bring places beyond [-S, S] back into it."""
    reflected = view_px - ((place + view_px).remainder(4 * view_px) - 2 * view_px).abs()
    wrapped = (place + view_px).remainder(2 * view_px) - view_px
    return torch.where(wrap, wrapped, reflected)


def _centres(view_px: int, device: torch.device) -> torch.Tensor:
    return 2.0 * torch.arange(view_px, device=device) + (1 - view_px)


def resampling(place: torch.Tensor, scale: torch.Tensor, native_px: int) -> torch.Tensor:
    """Return interpolation along one axis: (N, S) places, (N,) scales to (N, S, native_px).

    Bilinear where the view is finer than the grid, a wider triangle where pixels are averaged.
    """
    ratio = native_px / place.shape[1]
    # Half a pixel at either edge holds the edge's value.
    position = ((place * ratio + (native_px - 1)) / 2).clamp(0, native_px - 1)
    pixels = torch.arange(native_px, device=place.device, dtype=torch.float32)
    width = (scale * ratio).clamp(min=1)[:, None, None]
    weight = (position[..., None] - pixels).abs_().div_(width).neg_().add_(1).clamp_(min=0)
    return weight.div_(weight.sum(-1, keepdim=True))


def columns_first(patches: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
    """Lay patches out for ``warp``: rows, bands, columns (N, n, C, n) to columns, bands, rows.

    Of a transposed view, rows and columns have changed places already. May overwrite them.
    """
    exchanged = lists.listed(~transposed)
    if exchanged is None:
        return torch.where(transposed[:, None, None, None], patches, patches.permute(0, 3, 2, 1))
    patches[exchanged] = patches[exchanged].permute(0, 3, 2, 1)
    return patches


def warp(patches: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Apply the matrices to patches laid out by ``columns_first``: (N, n, C, n) to (N, S, S, C).

    Both products run over all bands of a view at once, and neither matrix is copied for each
    band. Columns go first, so that what is rearranged in between is the smaller intermediate.
    """
    num, native, bands, _ = patches.shape
    half = columns @ patches.reshape(num, native, bands * native)  # (N, S, C * n)
    half = half.view(num, -1, bands, native).permute(0, 3, 1, 2)  # (N, n, S, C)
    view = rows @ half.reshape(num, native, -1)  # (N, S, S * C)
    return view.view(num, rows.shape[1], columns.shape[1], bands)


def mean_of_view(patches: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return what ``warp`` would average to, without warping.

    Args:
        patches: (N, n, C, n), laid out by ``columns_first``.
        rows: (N, n), mean of the rows' matrix over the rows of the view.
        columns: (N, n), likewise.

    Returns:
        (N, C).
    """
    num, native, bands, _ = patches.shape
    line = columns[:, None] @ patches.reshape(num, native, bands * native)  # (N, 1, C * n)
    return (line.view(num, bands, native) @ rows[:, :, None]).squeeze(2)


def sample_points(patches: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Interpolate bilinearly at places: (N, n, C, n) and (N, S, S, 2) to (N, S, C, S).

    The result is laid out as by ``columns_first``.
    """
    sampled = F.grid_sample(
        patches.permute(0, 2, 1, 3),
        points,
        mode="bilinear",
        padding_mode="border",  # nothing lies outside any more but half pixels at the edge
        align_corners=False,
    )
    return sampled.permute(0, 3, 1, 2).contiguous()


def blur_matrix(sigma: torch.Tensor, size_px: int, radius_px: int) -> torch.Tensor:
    """Return Gaussian blur along one axis with reflection: (N,) to (N, size_px, size_px).

    Args:
        sigma: standard deviation in pixels; 0 gives the identity.
        size_px: length of the axis.
        radius_px: taps beyond it are cut; 0 cuts at 3 sigma, rounded up.
    """
    radius = float(radius_px) if radius_px else (3 * sigma).ceil()[:, None]
    spread = 2 * sigma.clamp(min=1e-3)[:, None] ** 2
    distance = torch.arange(2 * size_px, device=sigma.device, dtype=torch.float32)
    taps = torch.exp(-(distance**2) / spread) * (distance <= radius)  # (N, 2 size), one side
    # Entry i, j is a tap of |i - j|, and of i + j + 1 and 2 n - 1 - i - j, since pixel j also
    # stands at -1 - j and at 2 n - 1 - j, mirrored at the edges. Windows along a line of taps are
    # such matrices already: nothing is looked up.
    line = torch.cat([taps[:, 1:size_px].flip(1), taps[:, :size_px]], 1)
    direct = line.unfold(1, size_px, 1).flip(1)
    upper = taps.unfold(1, size_px, 1)[:, 1:]
    kernel = direct + upper + upper.flip(1, 2)
    return kernel.div_(kernel.sum(-1, keepdim=True))
