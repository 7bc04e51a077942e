"""One warp from each native grid straight to the view: no upsampled image in between.

Flip, quarter turn, shift, zoom and crop move each axis by itself (after a transposition), so a
view is ``A_y x A_x^T`` for every band, and resampling and blur are folded into the two matrices.
Patch coordinates follow the pixel-area convention: the patch spans [-1, 1] and pixel ``i`` of
``n`` is centred at ``(2 i + 1) / n - 1``, so that grids of 10, 20 and 60 m lie on each other.
"""

from __future__ import annotations

import torch

from simclr.augment.draws import ViewParameters


def axis_matrices(
    parameters: ViewParameters, native_px: int, view_px: int, *, wrap: bool, blur: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A_y and A_x, each (N, view_px, native_px), rows adding up to 1.

    Args:
        parameters: of N views.
        native_px: side of the band group's grid.
        view_px: side of the view.
        wrap: continue beyond the edge from the other side; else by reflection.
        blur: (N, view_px, view_px), from ``blur_matrix``; or an empty tensor for none.
    """
    matrices = []
    for axis in (0, 1):
        resample = _resample_matrix(
            parameters.centre[:, axis], parameters.extent[:, axis], native_px, view_px, wrap
        )
        matrices.append(blur @ resample if blur.numel() else resample)
    return matrices[0], matrices[1]


def warp(
    patches: torch.Tensor, transposed: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Apply the axis matrices: (N, C, n, n) to (N, view_px, C, view_px).

    The row axis comes before the bands: both products then run over all bands of a view at once,
    and neither matrix is copied for each band.
    """
    num, bands, native, _ = patches.shape
    upright = patches.permute(0, 2, 1, 3)  # (N, n, C, n), row axis first
    turned = patches.permute(0, 3, 1, 2)  # the same of the transposed patch
    sources = torch.where(transposed[:, None, None, None], turned, upright)
    half = rows @ sources.reshape(num, native, bands * native)  # (N, S, C * n)
    view = half.view(num, -1, native) @ columns.transpose(1, 2)  # (N, S * C, S)
    return view.view(num, rows.shape[1], bands, columns.shape[1])


def blur_matrix(sigma: torch.Tensor, size_px: int, radius_px: int) -> torch.Tensor:
    """Return Gaussian blur along one axis with reflection: (N,) to (N, size_px, size_px).

    Args:
        sigma: standard deviation in pixels; 0 gives the identity.
        size_px: length of the axis.
        radius_px: taps beyond it are cut; 0 cuts at 3 sigma, rounded up.
    """
    index = torch.arange(size_px, device=sigma.device, dtype=torch.float32)
    radius = float(radius_px) if radius_px else (3 * sigma).ceil()[:, None, None]
    spread = 2 * sigma.clamp(min=1e-3)[:, None, None] ** 2
    kernel = torch.zeros((), device=sigma.device)
    # Reflection at both edges: pixel j also stands at -1 - j and at 2 n - 1 - j.
    for image in (index, -1 - index, 2 * size_px - 1 - index):
        distance = (index[:, None] - image[None])[None]
        weight = torch.exp(-(distance**2) / spread)
        kernel = kernel + torch.where(distance.abs() <= radius, weight, 0.0)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    identity = torch.eye(size_px, device=sigma.device)
    return torch.where(sigma[:, None, None] > 0, kernel, identity)


def _resample_matrix(
    centre: torch.Tensor, extent: torch.Tensor, native_px: int, view_px: int, wrap: bool
) -> torch.Tensor:
    """Return bilinear interpolation along one axis, widened where the view is coarser."""
    step = torch.arange(view_px, device=centre.device, dtype=torch.float32)
    offsets = (2 * step + 1 - view_px) * (native_px / view_px)
    # Position in native pixels; written so that the identity comes out without rounding.
    position = (centre[:, None] * native_px + extent[:, None] * offsets + (native_px - 1)) / 2
    pixels = torch.arange(native_px, device=centre.device, dtype=torch.float32)
    if wrap:
        distance = (position[..., None] - pixels).remainder(native_px)
        distance = torch.minimum(distance, native_px - distance)
    else:
        distance = (_reflect(position, native_px)[..., None] - pixels).abs()
    # A triangle at least one native pixel wide (bilinear), wider when pixels are averaged.
    width = (extent.abs() * (native_px / view_px)).clamp(min=1)[:, None, None]
    weight = (1 - distance / width).clamp(min=0)
    return weight / weight.sum(-1, keepdim=True)


def _reflect(position: torch.Tensor, native_px: int) -> torch.Tensor:
    """Fold positions at the outer edges of the first and last pixel back into the grid."""
    folded = (position + 0.5).remainder(2 * native_px)
    folded = torch.minimum(folded, 2 * native_px - folded) - 0.5
    return folded.clamp(0, native_px - 1)  # half a pixel at the edge holds the edge value
