"""Geometric operations as maps of coordinates: uniforms in, one small affine map a view out.

A map leads from a pixel of the result back to the place in the operand that it shows, in patch
coordinates, where the operand spans [-1, 1] on both axes. What lies outside is folded back, by
reflection or, for the shift of 2021, by wrapping round.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from simclr.augment.presets import Preset
from simclr.choices import Rotation, Variant

SHIFT_PX_2021 = 12  # the 2021 code rolled by 0 to 11 pixels of 120
SIDE_PX_2021 = 120

Uniforms = dict[str, torch.Tensor]
Map = tuple[torch.Tensor, torch.Tensor]


def motion(name: str, preset: Preset, u: Uniforms) -> Map:
    """Return the (N, 2, 2) linear part and (N, 2) offset of an operation, axes in order y, x."""
    return _MOTIONS[name](preset, u)


def wraps(name: str, variant: Variant) -> bool:
    """Say whether an operation shows the other side of the patch beyond an edge."""
    return name == "shift" and variant is not Variant.corrected


def _crop(_: Preset, u: Uniforms) -> Map:
    # Area U(0.2, 1) and log-uniform aspect in [3/4, 4/3], as in Szegedy et al. 2015; a side that
    # would leave the patch is cut to it instead of drawn again.
    side = (0.2 + 0.8 * u["crop_area"]).sqrt()
    ratio = torch.exp((u["crop_aspect"] - 0.5) * math.log(4 / 3))  # root of the aspect
    extent = torch.stack([side * ratio, side / ratio], 1).clamp(max=1)
    centre = (2 * torch.stack([u["crop_y"], u["crop_x"]], 1) - 1) * (1 - extent)
    return torch.diag_embed(extent), centre


def _zoom(preset: Preset, u: Uniforms) -> Map:
    if preset.variant is Variant.corrected:
        extent = torch.exp(-(2 * u["zoom"] - 1) * math.log(1.25))
        return torch.diag_embed(torch.stack([extent, extent], 1)), _still(extent)
    low = torch.stack([u["zoom_y0"], u["zoom_x0"]], 1)
    high = torch.stack([u["zoom_y1"], u["zoom_x1"]], 1)
    if preset.variant is Variant.paper:
        # Ordered corners with an area in [0.64, 1]: each side at least 0.8 of the patch.
        side = 0.8 + 0.2 * high
        return torch.diag_embed(side), 2 * low * (1 - side) + side - 1
    # The crop box of 2021: four unordered uniforms, so that the patch shrinks and mirrors.
    return torch.diag_embed(high - low), low + high - 1


def _shift(preset: Preset, u: Uniforms) -> Map:
    shift = torch.stack([u["shift_y"], u["shift_x"]], 1)
    same = torch.ones_like(shift)
    if preset.variant is Variant.corrected:
        return torch.diag_embed(same), 2 * 0.1 * (2 * shift - 1)
    return torch.diag_embed(same), -2 * (shift * SHIFT_PX_2021).floor() / SIDE_PX_2021


def _rotation(preset: Preset, u: Uniforms) -> Map:
    if preset.rotation is Rotation.free:
        angle = math.pi * (2 * u["rotation"] - 1)
        cosine, sine = angle.cos(), angle.sin()
    else:
        # In 2021 a turn by nothing was one of four; it would leave the view as it was.
        corrected = preset.variant is Variant.corrected
        quarters = 1 + (3 * u["rotation"]).long() if corrected else (4 * u["rotation"]).long()
        cosine, sine = _quarter_turns(quarters)
    return _turn(cosine, sine), _still(cosine)


def _flip(preset: Preset, u: Uniforms) -> Map:
    if preset.variant is Variant.corrected:
        kind = 1 + (3 * u["flip"]).long()  # up-down, left-right, both: never none
        down, right = kind % 2 == 1, kind >= 2
    else:
        down, right = u["flip_vertical"] < 0.5, u["flip"] < 0.5
    return torch.diag_embed(_signs(down, right)), _still(u["flip"])


def _symmetry(_: Preset, u: Uniforms) -> Map:
    kind = (8 * u["symmetry"]).long()
    mirrored = _signs(kind >= 4, torch.zeros_like(kind, dtype=torch.bool))
    return _turn(*_quarter_turns(kind % 4)) * mirrored[:, :, None], _still(mirrored[:, 0])


def _quarter_turns(quarters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exact cosine and sine of k quarter turns: an angle in floats would smear pixels."""
    odd = quarters % 2
    return (1.0 - odd) * (1 - quarters), 1.0 * odd * (2 - quarters)


def _turn(cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return the map of a counterclockwise turn, with y pointing down as rows do."""
    return torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)


def _signs(down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return 1.0 - 2.0 * torch.stack([down, right], 1).to(torch.float32)


def _still(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(like), 2, device=like.device)


_MOTIONS: dict[str, Callable[[Preset, Uniforms], Map]] = {
    "crop": _crop,
    "zoom": _zoom,
    "shift": _shift,
    "rotation": _rotation,
    "flip": _flip,
    "symmetry": _symmetry,
}
