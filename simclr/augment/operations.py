"""The augmentation operations and the presets that choose among them.

An operation is one entry of ``OPERATIONS`` and its function; ``parameters`` draws by the entry, and
``geometry`` and ``photometric`` carry out what was drawn. The first nine are those of the SimCLR-S2
study (2021), each with one meaning: on the ground, or in reflectance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import combinations
from typing import NamedTuple

import torch

from simclr.choices import Rotation
from simclr.config import AugmentConfig

Strengths = Mapping[str, float]
Couplet = tuple[str, str]


class Stage(IntEnum):
    """What an operation's function returns for N views; also the order where none is given.

    ``geometry``: (N, 2, 3), the affine map from the axes y, x of the result to those of its
    operand, both spanning [-1, 1]; beyond an edge comes the reflection.
    ``blur``: (N,) sigma of a Gaussian in pixels of the view.
    ``line``: (N, 4, C) or (N, 4, 1): a, b, c, d of ``a z + b + c mean / std + d m`` for normalised
    values z, with mean / std of the band's source and m the mean of the band in the view.
    ``noise``: (N,) standard deviation of noise in proportion to the reflectance.
    """

    geometry = 0
    blur = 1
    line = 2
    noise = 3


class Strength(NamedTuple):
    """A number that says how strong an operation is, with its limits."""

    default: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Operation:
    """An entry of the registry.

    Attributes:
        stage: what ``function`` returns.
        function: takes the strengths and (N, num_uniforms) uniforms in [0, 1); returns the
            parameters of N views that all get the operation.
        num_uniforms: how many it draws.
        num_per_band: how many it draws for each band, behind the others.
        strengths: by the name under which ``augment.strengths`` sets them.
    """

    stage: Stage
    function: Callable[[Strengths, torch.Tensor], torch.Tensor]
    num_uniforms: int
    num_per_band: int = 0
    strengths: Mapping[str, Strength] = field(default_factory=dict)


def zoom(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Scale about the centre, log-uniform between 1 / ``zoom`` and ``zoom``."""
    extent = torch.exp((1 - 2 * u[:, 0]) * math.log(s["zoom"]))
    return _affine(extent, 0, 0, extent)


def shift(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Move by up to ``shift`` of the side along both axes, by fractions of pixels too."""
    move = 2 * s["shift"] * (2 * u - 1)
    return _affine(1, 0, 0, 1, move[:, 0], move[:, 1])


def rotation(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Turn by 90, 180 or 270 degrees."""
    return _turn(*_quarter_turns(1 + (3 * u[:, 0]).floor()))


def free_rotation(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Turn by any angle; the ``rotation`` of ``augment.rotation=free``."""
    angle = math.pi * (2 * u[:, 0] - 1)
    return _turn(angle.cos(), angle.sin())


def flip(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Mirror up-down, left-right, or both."""
    kind = (3 * u[:, 0]).floor()
    return _affine(2 * (kind == 1) - 1.0, 0, 0, 2 * (kind == 0) - 1.0)


def crop(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Show a random part: area U(``crop_area``, 1), log-uniform aspect up to ``crop_aspect``.

    As in Szegedy et al. 2015, but for a side that would leave the patch: it is cut to the patch
    instead of drawn again.
    """
    side = (s["crop_area"] + (1 - s["crop_area"]) * u[:, 0]).sqrt()
    ratio = torch.exp((u[:, 1] - 0.5) * math.log(s["crop_aspect"]))  # root of the aspect
    extent = torch.stack([side * ratio, side / ratio], 1).clamp(max=1)
    centre = (2 * u[:, 2:] - 1) * (1 - extent)
    return _affine(extent[:, 0], 0, 0, extent[:, 1], centre[:, 0], centre[:, 1])


def symmetry(_: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Take one of the eight symmetries of the square, each equally likely."""
    kind = (8 * u[:, 0]).floor()
    mirror = 1 - 2 * (kind >= 4).float()
    return _turn(*_quarter_turns(kind.remainder(4)), mirror)


def blur(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Blur by a Gaussian of sigma U(``blur_min``, ``blur``) pixels."""
    return s["blur_min"] + (s["blur"] - s["blur_min"]) * u[:, 0]


def contrast(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Spread each band about its own mean by a factor within ``contrast`` of 1."""
    factor = 1 + s["contrast"] * (2 * u[:, 0] - 1)
    return _line(factor=factor, mean=1 - factor)


def gain(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Multiply the reflectance by a factor, log-uniform between 1 / ``gain`` and ``gain``.

    Calibration differs between bands, hence ``gain_per_band``, the standard deviation of a factor
    of each band: uniform instead of normal, since nothing should hang on tails.
    """
    common = (2 * u[:, :1] - 1) * math.log(s["gain"])
    own = s["gain_per_band"] * math.sqrt(3) * (2 * u[:, 1:] - 1)
    factor = torch.exp(common + own)
    return _line(factor=factor, light=factor - 1)


def brightness(s: Strengths, u: torch.Tensor) -> torch.Tensor:
    """Add up to ``brightness`` standard deviations of each band, either way."""
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
    # Not of the study: SimCLR's random resized crop, and the symmetries of a square.
    "crop": Operation(
        Stage.geometry,
        crop,
        4,
        strengths={"crop_area": Strength(0.2, 0.01, 1), "crop_aspect": Strength(4 / 3, 1, 4)},
    ),
    "symmetry": Operation(Stage.geometry, symmetry, 1),
}

# Where no order is given: geometry first, so that noise stays as sharp as a sensor's, and within
# it the crop first; contrast, gain and brightness in SimCLR's order of importance.
_FIRST = ("crop", "zoom", "shift", "rotation", "flip", "symmetry", "contrast", "gain", "brightness")
USUAL_ORDER = tuple(
    sorted(
        OPERATIONS,
        key=lambda name: (
            OPERATIONS[name].stage,
            _FIRST.index(name) if name in _FIRST else len(_FIRST),
        ),
    )
)

PIXEL = ("blur", "brightness", "contrast", "gain", "speckle")
GEOMETRIC = ("flip", "rotation", "shift", "zoom")
NINE = PIXEL + GEOMETRIC

# The nine lowest-ranked couplets of the study's 36, left out of its full runs.
BANNED = frozenset(
    frozenset(couplet)
    for couplet in (
        ("brightness", "contrast"),
        ("rotation", "brightness"),
        ("flip", "blur"),
        ("zoom", "blur"),
        ("shift", "flip"),
        ("rotation", "blur"),
        ("flip", "gain"),
        ("brightness", "gain"),
        ("blur", "brightness"),
    )
)

_CROPPED = {"crop": 1.0, "symmetry": 1.0}
# Chances of the operations of each preset; ``paper`` draws couplets, ``list`` is in the settings.
PRESETS: dict[str, dict[str, float]] = {
    "paper": {},
    "standard": {
        **_CROPPED, "blur": 0.5, "contrast": 0.8, "gain": 0.8, "brightness": 0.8, "speckle": 0.2,
    },
    "geometric_standard": _CROPPED,
    "none": {},
    "all": dict.fromkeys(NINE, 1.0),
    "geometric": dict.fromkeys(GEOMETRIC, 1.0),
    "pixel": dict.fromkeys(PIXEL, 1.0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preset:
    """Which operations a view gets, how strong, and in which order.

    Attributes:
        name: as written into the run record.
        probabilities: chance of each operation, independent of the others, in order of
            application.
        couplets: if given, exactly one of these pairs is applied, each equally likely and in
            either order.
        rotation: how ``rotation`` turns.
        band_drop: chance that a band is blanked.
        strengths: those that differ from the defaults.
    """

    name: str
    probabilities: Mapping[str, float]
    couplets: tuple[Couplet, ...] = ()
    rotation: Rotation = Rotation.quarter
    band_drop: float = 0.0
    strengths: Strengths = field(default_factory=dict)

    @property
    def operations(self) -> frozenset[str]:
        """Every operation that a view may get."""
        single = {name for name, chance in self.probabilities.items() if chance > 0}
        return frozenset(single | {name for couplet in self.couplets for name in couplet})

    def of_stage(self, stage: Stage) -> tuple[str, ...]:
        """Return the operations of a stage that a view may get, in their order of application."""
        order = USUAL_ORDER if self.couplets else self.probabilities
        return tuple(
            name for name in order if name in self.operations and OPERATIONS[name].stage is stage
        )

    def may_precede(self, first: str, others: frozenset[str]) -> bool:
        """Say whether ``first`` may be applied before one of the others in some view."""
        if any(first in couplet and set(couplet) & (others - {first}) for couplet in self.couplets):
            return True
        order = [name for name, chance in self.probabilities.items() if chance > 0]
        return first in order and bool(set(order[order.index(first) + 1 :]) & others)


def allowed_couplets() -> tuple[Couplet, ...]:
    """Return the 27 couplets that the study left in."""
    return tuple(pair for pair in combinations(NINE, 2) if frozenset(pair) not in BANNED)


def preset_of(config: AugmentConfig) -> Preset:
    """Return the preset that the settings name, with their chances and strengths.

    Raises:
        ValueError: an unknown operation or strength, or a number beyond its limits; the
            message lists what is valid.
    """
    _check_strengths(config.strengths)
    name, probabilities = config.preset.value, PRESETS.get(config.preset, {})
    couplets: tuple[Couplet, ...] = ()
    if config.preset == "list":
        _check_operations("augment.operations", config.operations)
        name, probabilities = "+".join(config.operations), dict.fromkeys(config.operations, 1.0)
    elif config.preset == "couplets":
        name, couplets = ",".join(config.couplets), tuple(map(_couplet, config.couplets))
    elif config.preset == "paper":
        couplets = allowed_couplets()
    if config.probabilities:
        probabilities = _with_chances(config, probabilities)
    if config.preset != "list":
        probabilities = {one: probabilities[one] for one in USUAL_ORDER if one in probabilities}
    preset = Preset(
        name, probabilities, couplets, config.rotation, config.band_drop, config.strengths
    )
    if config.rotation is Rotation.free and "rotation" not in preset.operations:
        raise ValueError(
            f"augment.rotation is free, but augment.preset={config.preset} never rotates; "
            "take a preset with the operation rotation, or rotation=quarter"
        )
    return preset


def _with_chances(config: AugmentConfig, probabilities: Mapping[str, float]) -> dict[str, float]:
    _check_operations("augment.probabilities", config.probabilities)
    if config.preset in ("paper", "couplets"):
        raise ValueError(
            f"augment.probabilities is set, but with augment.preset={config.preset} every view "
            "gets one couplet; leave it out, or take another preset"
        )
    for name, chance in config.probabilities.items():
        if not 0 <= chance <= 1:
            raise ValueError(f"augment.probabilities.{name} is {chance}; give a chance from 0 to 1")
        if config.preset == "list" and name not in probabilities:
            raise ValueError(
                f"augment.probabilities has {name}, which is not in augment.operations; its place "
                "in the order is unknown: add it there"
            )
    return {**probabilities, **config.probabilities}


def _check_strengths(given: Strengths) -> None:
    known = {name: s for one in OPERATIONS.values() for name, s in one.strengths.items()}
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"augment.strengths has {name!r}; valid names: {', '.join(sorted(known))}"
            )
        _, lowest, highest = known[name]
        if not lowest <= value <= highest:
            raise ValueError(
                f"augment.strengths.{name} is {value}; give a number from {lowest:g} to {highest:g}"
            )


def _couplet(text: str) -> Couplet:
    names = text.split("+")
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(
            f"augment.couplets holds {text!r}; write two different operations, as in blur+gain"
        )
    _check_operations("augment.couplets", names)
    return names[0], names[1]


def _check_operations(field_name: str, names: list[str] | Mapping[str, float]) -> None:
    for name in names:
        if name not in OPERATIONS:
            raise ValueError(f"{field_name} holds {name!r}; valid names: {', '.join(OPERATIONS)}")


_Entry = torch.Tensor | float


def _affine(
    yy: _Entry, yx: _Entry, xy: _Entry, xx: _Entry, y: _Entry = 0.0, x: _Entry = 0.0
) -> torch.Tensor:
    """Return (N, 2, 3) of the entries, each (N,) or the same for all."""
    return _stacked(yy, yx, y, xy, xx, x).view(-1, 2, 3)


def _line(
    factor: _Entry = 1.0, added: _Entry = 0.0, light: _Entry = 0.0, mean: _Entry = 0.0
) -> torch.Tensor:
    """Return (N, 4, C) of a line's coefficients, each (N, C), (N,), or the same for all."""
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
    """Return exact cosine and sine of k quarter turns: an angle in floats would smear pixels."""
    odd = quarters.remainder(2)
    return (1 - odd) * (1 - quarters), odd * (2 - quarters)


def _turn(cosine: torch.Tensor, sine: torch.Tensor, mirror: _Entry = 1.0) -> torch.Tensor:
    """Return a counterclockwise turn of rows that run down, its first axis mirrored or not."""
    return _affine(mirror * cosine, mirror * sine, -sine, cosine)
