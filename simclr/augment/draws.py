"""Parameters of every view of a batch, drawn from (seed, epoch, sample, view) alone.

An operation that a view did not get has its identity parameter, so that nothing later branches on
what was drawn. The draw of each parameter stands at a fixed place in the stream: a preset can
change without moving the draws of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from simclr.augment.presets import OPERATIONS, Preset, Variant
from simclr.philox import uniforms

SHIFT_PX_2021 = 12  # the 2021 code rolled by 0 to 11 pixels of 120
SIDE_PX_2021 = 120

_SCALARS = (
    "couplet",
    "rotation",
    "flip",
    "flip_vertical",
    "shift_y",
    "shift_x",
    "zoom",
    "zoom_y0",
    "zoom_y1",
    "zoom_x0",
    "zoom_x1",
    "crop_area",
    "crop_aspect",
    "crop_y",
    "crop_x",
    "symmetry",
    "blur",
    "brightness",
    "contrast",
    "gain",
    "noise",
    "noise_window",
)


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """What is done to N views; every field is a tensor on the device.

    Geometry, in patch coordinates where the patch spans [-1, 1] on each axis:

    Attributes:
        transposed: (N,) bool, rows and columns exchanged before all else.
        centre: (N, 2) centre of the view, y and x.
        extent: (N, 2) half side of the view; 1 is the whole patch, negative is mirrored.
        blur: (N,) sigma of a Gaussian in pixels of the view, 0 for none.
        contrast: (N,) factor about each band's mean in the view, 1 for none.
        gain: (N, C) factor of the reflectance, 1 for none.
        brightness: (N,) added, in standard deviations of the band, 0 for none.
        speckle: (N,) standard deviation of multiplicative noise, 0 for none.
        impulse: (N,) share of pixels set to each extreme, 0 for none.
        noise_window: (N,) uniform in [0, 1): which noise is used.
    """

    transposed: torch.Tensor
    centre: torch.Tensor
    extent: torch.Tensor
    blur: torch.Tensor
    contrast: torch.Tensor
    gain: torch.Tensor
    brightness: torch.Tensor
    speckle: torch.Tensor
    impulse: torch.Tensor
    noise_window: torch.Tensor

    def equals(self, other: ViewParameters) -> bool:
        """True if every parameter is the same to the last bit."""
        return all(
            torch.equal(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        )


def draw(
    preset: Preset, seed: int, epoch: int, sample_id: torch.Tensor, view: torch.Tensor, bands: int
) -> ViewParameters:
    """Draw the parameters of N views: ``sample_id`` and ``view`` are (N,) int64."""
    num = len(_SCALARS) + len(OPERATIONS) + bands
    table = uniforms(seed, epoch, sample_id, view, num)
    scalars = dict(zip(_SCALARS, table.T, strict=False))
    chosen = _choose(preset, scalars["couplet"], table[:, len(_SCALARS) :])
    jitter = table[:, len(_SCALARS) + len(OPERATIONS) :]
    return ViewParameters(
        **_geometry(preset.variant, chosen, scalars),
        **_radiometry(preset.variant, chosen, scalars, jitter),
        noise_window=scalars["noise_window"],
    )


def _choose(
    preset: Preset, couplet: torch.Tensor, chances: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return for each operation which views get it: {name: (N,) bool}."""
    if preset.couplets:
        members = torch.zeros(len(preset.couplets), len(OPERATIONS), dtype=torch.bool)
        for row, names in enumerate(preset.couplets):
            members[row, [OPERATIONS.index(name) for name in names]] = True
        number = (couplet * len(preset.couplets)).long()
        chosen = members.to(couplet.device)[number]
    else:
        limits = torch.tensor([preset.probabilities.get(name, 0.0) for name in OPERATIONS])
        chosen = chances[:, : len(OPERATIONS)] < limits.to(chances.device)
    return dict(zip(OPERATIONS, chosen.T, strict=True))


def _geometry(
    variant: Variant, chosen: dict[str, torch.Tensor], u: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    centre, extent = _crop(chosen, u)
    zoom_centre, zoom_extent = _zoom(variant, u)
    centre = centre + extent * torch.where(chosen["zoom"][:, None], zoom_centre, 0.0)
    extent = extent * torch.where(chosen["zoom"][:, None], zoom_extent, 1.0)
    centre = centre + torch.where(chosen["shift"][:, None], _shift(variant, u), 0.0)
    transposed, signs = _turns(variant, chosen, u)
    return {"transposed": transposed, "centre": centre, "extent": extent * signs}


def _crop(
    chosen: dict[str, torch.Tensor], u: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    # Area U(0.2, 1) and log-uniform aspect in [3/4, 4/3], as in Szegedy et al. 2015; a side that
    # would leave the patch is cut to it instead of drawn again.
    area = 0.2 + 0.8 * u["crop_area"]
    aspect = torch.exp((2 * u["crop_aspect"] - 1) * math.log(4 / 3))
    extent = torch.stack([area.sqrt() * aspect.sqrt(), area.sqrt() / aspect.sqrt()], 1).clamp(max=1)
    centre = (2 * torch.stack([u["crop_y"], u["crop_x"]], 1) - 1) * (1 - extent)
    mask = chosen["crop"][:, None]
    return torch.where(mask, centre, 0.0), torch.where(mask, extent, 1.0)


def _zoom(variant: Variant, u: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    if variant is Variant.corrected:
        extent = torch.exp(-(2 * u["zoom"] - 1) * math.log(1.25))
        return torch.zeros_like(extent)[:, None].expand(-1, 2), extent[:, None].expand(-1, 2)
    if variant is Variant.paper:
        # Ordered corners with an area in [0.64, 1]: each side at least 0.8 of the patch.
        low = torch.stack([u["zoom_y0"], u["zoom_x0"]], 1)
        side = 0.8 + 0.2 * torch.stack([u["zoom_y1"], u["zoom_x1"]], 1)
        return 2 * low * (1 - side) + side - 1, side
    # The crop box of 2021: four unordered uniforms, so that the patch shrinks and mirrors.
    low = torch.stack([u["zoom_y0"], u["zoom_x0"]], 1)
    high = torch.stack([u["zoom_y1"], u["zoom_x1"]], 1)
    return low + high - 1, high - low


def _shift(variant: Variant, u: dict[str, torch.Tensor]) -> torch.Tensor:
    shift = torch.stack([u["shift_y"], u["shift_x"]], 1)
    if variant is Variant.corrected:
        return 2 * 0.1 * (2 * shift - 1)
    return -2 * (shift * SHIFT_PX_2021).floor() / SIDE_PX_2021


def _turns(
    variant: Variant, chosen: dict[str, torch.Tensor], u: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N,) transposed and (N, 2) signs of y and x."""
    if variant is Variant.corrected:
        quarter = 1 + (3 * u["rotation"]).long()
        mirror = 1 + (3 * u["flip"]).long()  # 1 up-down, 2 left-right, 3 both
    else:
        quarter = (4 * u["rotation"]).long()
        mirror = (u["flip_vertical"] < 0.5).long() + 2 * (u["flip"] < 0.5).long()
    symmetry = (8 * u["symmetry"]).long()
    quarter = quarter * chosen["rotation"] + (symmetry % 4) * chosen["symmetry"]
    mirror = mirror * chosen["flip"] + (symmetry // 4) * chosen["symmetry"]
    # A quarter turn counterclockwise is a transposition followed by an up-down mirror.
    quarter = quarter % 4
    down = ((quarter == 1) | (quarter == 2)) ^ (mirror % 2 == 1)
    right = ((quarter == 2) | (quarter == 3)) ^ (mirror >= 2)
    signs = 1.0 - 2.0 * torch.stack([down, right], 1).to(torch.float32)
    return quarter % 2 == 1, signs


def _radiometry(
    variant: Variant,
    chosen: dict[str, torch.Tensor],
    u: dict[str, torch.Tensor],
    jitter: torch.Tensor,
) -> dict[str, torch.Tensor]:
    speckle, impulse = _noise(variant, u["noise"])
    return {
        "blur": torch.where(chosen["blur"], 0.1 + 1.9 * u["blur"], 0.0),
        "contrast": torch.where(chosen["contrast"], 0.6 + 0.8 * u["contrast"], 1.0),
        "gain": torch.where(chosen["gain"][:, None], _gain(variant, u["gain"], jitter), 1.0),
        "brightness": torch.where(chosen["brightness"], 0.8 * u["brightness"] - 0.4, 0.0),
        "speckle": torch.where(chosen["speckle"], speckle, 0.0),
        "impulse": torch.where(chosen["speckle"], impulse, 0.0),
    }


def _gain(variant: Variant, u: torch.Tensor, jitter: torch.Tensor) -> torch.Tensor:
    if variant is Variant.corrected:
        # Log-uniform in [0.8, 1.25], with 3 % per band: calibration differs between bands. A
        # uniform of the same standard deviation stands for the normal: nothing hangs on tails.
        common = torch.exp((2 * u - 1) * math.log(1.25))
        return common[:, None] * torch.exp(0.03 * math.sqrt(3) * (2 * jitter - 1))
    low = 0.5 if variant is Variant.paper else -0.5
    return (low + u)[:, None].expand(jitter.shape)


def _noise(variant: Variant, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return speckle and impulse: multiplicative noise, or the salt and pepper of 2021."""
    nothing = torch.zeros_like(u)
    return (0.1 * u, nothing) if variant is Variant.corrected else (nothing, 0.02 * u)
