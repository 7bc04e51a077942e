"""The augmentation operations, each an entry of ``OPERATIONS`` with its function.

The first nine are those of the SimCLR-S2 study (2021), each defined either on the ground or in
reflectance. ``parameters`` draws them by their entries, ``transforms`` applies the draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import torch

Strengths = Mapping[str, float]


class Stage(IntEnum):
    """The kind of parameters that an operation returns for N views; also the default order.

    ``geometry``: (N, 2, 3), the affine map from the axes y, x of the result to those of its
    operand, both spanning [-1, 1]; reflected beyond the edges.
    ``blur``: (N,) sigma of a Gaussian in pixels of the view.
    ``line``: (N, 4, C) or (N, 4, 1): a, b, c, d of ``a z + b + c mean / std + d m`` for normalised
    values z, with mean / std of the band's source and m the mean of the band in the view.
    ``noise``: (N,) standard deviation of noise relative to the reflectance.
    """

    geometry = 0
    blur = 1
    line = 2
    noise = 3


class Strength(NamedTuple):
    """The default and the limits of a strength of an operation."""

    default: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Operation:
    """An entry of the registry.

    ``function`` maps the strengths and uniforms in [0, 1), (N, num_uniforms + num_per_band * C),
    to the parameters of N views, as if all got the operation.
    """

    stage: Stage  # kind of result of ``function``
    function: Callable[[Strengths, torch.Tensor], torch.Tensor]
    num_uniforms: int
    num_per_band: int = 0  # uniforms per band, after the others
    # by name in ``augment.strengths``
    strengths: Mapping[str, Strength] = field(default_factory=dict)


def zoom(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Scale about the centre, log-uniform between 1 / ``zoom`` and ``zoom``."""
    extent = torch.exp((1 - 2 * u[:, 0]) * math.log(s["zoom"]))
    return _affine(extent, 0, 0, extent)


def shift(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Move by up to ``shift`` of the side along both axes, including fractions of pixels."""
    move = 2 * s["shift"] * (2 * u - 1)
    return _affine(1, 0, 0, 1, move[:, 0], move[:, 1])


def rotation(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Turn by 90, 180 or 270 degrees."""
    return _turn(*_quarter_turns(1 + (3 * u[:, 0]).floor()))


def free_rotation(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Turn by any angle; replaces ``rotation`` with ``augment.rotation=free``."""
    angle = math.pi * (2 * u[:, 0] - 1)
    return _turn(angle.cos(), angle.sin())


def flip(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Mirror up-down, left-right, or both."""
    kind = (3 * u[:, 0]).floor()
    return _affine(2 * (kind == 1) - 1.0, 0, 0, 2 * (kind == 0) - 1.0)


def crop(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Crop a random part: area U(``crop_area``, 1), log-uniform aspect up to ``crop_aspect``.

    As in Szegedy et al. 2015, except that a side longer than the patch is clipped to it instead of
    drawn again.
    """
    side = (s["crop_area"] + (1 - s["crop_area"]) * u[:, 0]).sqrt()
    ratio = torch.exp((u[:, 1] - 0.5) * math.log(s["crop_aspect"]))  # square root of the aspect
    extent = torch.stack([side * ratio, side / ratio], 1).clamp(max=1)
    centre = (2 * u[:, 2:] - 1) * (1 - extent)
    return _affine(extent[:, 0], 0, 0, extent[:, 1], centre[:, 0], centre[:, 1])


def symmetry(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Apply one of the eight symmetries of the square, each equally likely."""
    kind = (8 * u[:, 0]).floor()
    mirror = 1 - 2 * (kind >= 4).float()
    return _turn(*_quarter_turns(kind.remainder(4)), mirror)


def blur(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Blur with a Gaussian of sigma U(``blur_min``, ``blur``) pixels."""
    return s["blur_min"] + (s["blur"] - s["blur_min"]) * u[:, 0]


def contrast(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Scale each band about its own mean by a factor U(1 - ``contrast``, 1 + ``contrast``)."""
    factor = 1 + s["contrast"] * (2 * u[:, 0] - 1)
    return _line(factor=factor, mean=1 - factor)


def gain(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Multiply the reflectance by a factor, log-uniform between 1 / ``gain`` and ``gain``.

    Calibration differs between bands, hence ``gain_per_band``, the standard deviation of the log of
    an additional factor per band: uniform instead of normal, to avoid tails.
    """
    common = (2 * u[:, :1] - 1) * math.log(s["gain"])
    own = s["gain_per_band"] * math.sqrt(3) * (2 * u[:, 1:] - 1)
    factor = torch.exp(common + own)
    return _line(factor=factor, light=factor - 1)


def brightness(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Add U(-``brightness``, ``brightness``) standard deviations of each band."""
    return _line(added=s["brightness"] * (2 * u[:, 0] - 1))


def speckle(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Multiply each pixel and band by 1 + sigma n, n standard normal, sigma U(0, ``speckle``)."""
    return s["speckle"] * u[:, 0]


OPERATIONS: dict[str, Operation] = {
    "blur": Operation(
        Stage.blur,
        blur,
        1,
        strengths={"blur": Strength(2.0, 0, 10), "blur_min": Strength(0.1, 0, 10)},
    ),
    "brightness": Operation(
        Stage.line, brightness, 1, strengths={"brightness": Strength(0.4, 0, 5)}
    ),
    "contrast": Operation(Stage.line, contrast, 1, strengths={"contrast": Strength(0.4, 0, 1)}),
    "gain": Operation(
        Stage.line,
        gain,
        1,
        num_per_band=1,
        strengths={"gain": Strength(1.25, 1, 4), "gain_per_band": Strength(0.03, 0, 1)},
    ),
    "speckle": Operation(Stage.noise, speckle, 1, strengths={"speckle": Strength(0.1, 0, 1)}),
    "flip": Operation(Stage.geometry, flip, 1),
    "rotation": Operation(Stage.geometry, rotation, 1),
    "shift": Operation(Stage.geometry, shift, 2, strengths={"shift": Strength(0.1, 0, 1)}),
    "zoom": Operation(Stage.geometry, zoom, 1, strengths={"zoom": Strength(1.25, 1, 4)}),
    # Not in the study: SimCLR's random resized crop, and the symmetries of a square.
    "crop": Operation(
        Stage.geometry,
        crop,
        4,
        strengths={"crop_area": Strength(0.2, 0.01, 1), "crop_aspect": Strength(4 / 3, 1, 4)},
    ),
    "symmetry": Operation(Stage.geometry, symmetry, 1),
}

_Entry = torch.Tensor | float


def _affine(
    yy: _Entry, yx: _Entry, xy: _Entry, xx: _Entry, y: _Entry = 0.0, x: _Entry = 0.0
) -> torch.Tensor:
    """Return affine maps (N, 2, 3) from their entries, each (N,) or a constant."""
    return _stacked(yy, yx, y, xy, xx, x).view(-1, 2, 3)


def _line(
    factor: _Entry = 1.0, added: _Entry = 0.0, light: _Entry = 0.0, mean: _Entry = 0.0
) -> torch.Tensor:
    """Return lines (N, 4, C) from their coefficients, each (N, C), (N,), or a constant."""
    wide = [one[:, None] if isinstance(one, torch.Tensor) and one.ndim == 1 else one
            for one in (factor, added, light, mean)]  # fmt: skip
    return _stacked(*wide)


def _stacked(*entries: _Entry) -> torch.Tensor:
    like = next(one for one in entries if isinstance(one, torch.Tensor))
    constants = {one: torch.full_like(like, one) for one in entries if isinstance(one, int | float)}
    return torch.stack(
        [one if isinstance(one, torch.Tensor) else constants[one] for one in entries], 1
    )


def _quarter_turns(quarters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exact cosine and sine of k quarter turns: rounded ones would smear pixels."""
    odd = quarters.remainder(2)
    return (1 - odd) * (1 - quarters), odd * (2 - quarters)


def _turn(cosine: torch.Tensor, sine: torch.Tensor, mirror: _Entry = 1.0) -> torch.Tensor:
    """Return a counterclockwise turn, with rows running down, and optionally y mirrored."""
    return _affine(mirror * cosine, mirror * sine, -sine, cosine)
