"""Presets, and the parameters of every view, drawn from a preset and (seed, epoch, sample, view).

The views of a sample are therefore the same for any number of ranks, threads or devices and after
any restart. An operation not applied to a view has its identity parameter, so that later code does
not branch on the draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

import torch

from simclr.augment.operations import OPERATIONS, Stage, Strengths, free_rotation
from simclr.config import AugmentConfig, Rotation, require
from simclr.philox import Epoch, Philox

Couplet = tuple[str, str]

# Default order: geometry first, so that noise stays as sharp as a sensor's, and the crop first of
# all; then contrast, gain and brightness in SimCLR's order of importance.
_FIRST = ("crop", "zoom", "shift", "rotation", "flip", "symmetry", "contrast", "gain", "brightness")
_RANK = {name: number for number, name in enumerate(_FIRST)}
USUAL_ORDER = tuple(
    sorted(OPERATIONS, key=lambda name: (OPERATIONS[name].stage, _RANK.get(name, len(_FIRST))))
)

PIXEL = ("blur", "brightness", "contrast", "gain", "speckle")
GEOMETRIC = ("flip", "rotation", "shift", "zoom")
NINE = PIXEL + GEOMETRIC

# The nine lowest-ranked couplets of the study's 36, excluded from its full runs.
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
# Probabilities of each preset's operations; ``paper`` draws couplets, ``list`` is in the settings.
PRESETS: dict[str, dict[str, float]] = {
    "paper": {},
    "standard": {**_CROPPED, "contrast": 0.8, "gain": 0.8, "brightness": 0.8},
    "simclr": {
        **_CROPPED, "blur": 0.5, "contrast": 0.8, "gain": 0.8, "brightness": 0.8, "speckle": 0.2,
    },
    "geometric_standard": _CROPPED,
    "none": {},
    "all": dict.fromkeys(NINE, 1.0),
    "geometric": dict.fromkeys(GEOMETRIC, 1.0),
    "pixel": dict.fromkeys(PIXEL, 1.0),
}  # fmt: skip
# About half the defaults, since classes differ in colour too (benchmarks/results/recipes.md).
PRESET_STRENGTHS: dict[str, Strengths] = {
    "standard": {"gain": 1.1, "brightness": 0.2, "contrast": 0.2}
}


@dataclass(frozen=True, slots=True)
class Preset:
    """The operations of a view, their probabilities, strengths and order."""

    name: str  # as written into the run record
    # independent probability of each operation, in order of application
    probabilities: Mapping[str, float]
    # if given, exactly one of these pairs is applied, each equally likely and in either order
    couplets: tuple[Couplet, ...] = ()
    rotation: Rotation = Rotation.quarter
    band_drop: float = 0.0  # probability that a band is blanked
    strengths: Strengths = field(default_factory=dict)  # overrides of the defaults

    @property
    def operations(self) -> frozenset[str]:
        """All operations that a view may get."""
        single = {name for name, chance in self.probabilities.items() if chance > 0}
        return frozenset(single | {name for couplet in self.couplets for name in couplet})

    def of_stage(self, stage: Stage) -> tuple[str, ...]:
        """Return the operations of a stage that a view may get, in their order of application."""
        order, may = USUAL_ORDER if self.couplets else self.probabilities, self.operations
        return tuple(name for name in order if name in may and OPERATIONS[name].stage is stage)

    def may_precede(self, first: str, others: frozenset[str]) -> bool:
        """Return whether any view may apply ``first`` before one of the others."""
        if any(first in couplet and set(couplet) & (others - {first}) for couplet in self.couplets):
            return True
        order = [name for name, chance in self.probabilities.items() if chance > 0]
        return first in order and bool(set(order[order.index(first) + 1 :]) & others)


def allowed_couplets() -> tuple[Couplet, ...]:
    """Return the 27 couplets that the study kept."""
    return tuple(pair for pair in combinations(NINE, 2) if frozenset(pair) not in BANNED)


def preset_of(config: AugmentConfig) -> Preset:
    """Return the preset of the settings, with their probabilities and strengths.

    Unknown names and values out of range raise a ValueError that lists the valid ones.
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
    strengths = {**PRESET_STRENGTHS.get(config.preset, {}), **config.strengths}
    preset = Preset(name, probabilities, couplets, config.rotation, config.band_drop, strengths)
    require(
        config.rotation is Rotation.quarter or "rotation" in preset.operations,
        f"augment.rotation is free, but augment.preset={config.preset} never rotates; "
        "take a preset with the operation rotation, or rotation=quarter",
    )
    return preset


def _with_chances(config: AugmentConfig, probabilities: Mapping[str, float]) -> dict[str, float]:
    _check_operations("augment.probabilities", config.probabilities)
    require(
        config.preset not in ("paper", "couplets"),
        f"augment.probabilities is set, but with augment.preset={config.preset} every view "
        "gets one couplet; leave it out, or take another preset",
    )
    for name, chance in config.probabilities.items():
        key = f"augment.probabilities.{name}"
        require(0 <= chance <= 1, f"{key} is {chance}; give a chance from 0 to 1")
        require(
            config.preset != "list" or name in probabilities,
            f"augment.probabilities has {name}, which is not in augment.operations; its place "
            "in the order is unknown: add it there",
        )
    return {**probabilities, **config.probabilities}


def _check_strengths(given: Strengths) -> None:
    known = {name: s for one in OPERATIONS.values() for name, s in one.strengths.items()}
    names = ", ".join(sorted(known))
    for name, value in given.items():
        require(name in known, f"augment.strengths has {name!r}; valid names: {names}")
        _, lowest, highest = known[name]
        require(
            lowest <= value <= highest,
            f"augment.strengths.{name} is {value}; give a number from {lowest:g} to {highest:g}",
        )


def _couplet(text: str) -> Couplet:
    names = text.split("+")
    require(
        len(names) == 2 and names[0] != names[1],
        f"augment.couplets holds {text!r}; write two different operations, as in blur+gain",
    )
    _check_operations("augment.couplets", names)
    return names[0], names[1]


def _check_operations(field_name: str, names: list[str] | Mapping[str, float]) -> None:
    valid = ", ".join(OPERATIONS)
    for name in names:
        require(name in OPERATIONS, f"{field_name} holds {name!r}; valid names: {valid}")
    require(len(set(names)) == len(names), f"{field_name} repeats one of {', '.join(names)}")


_COUPLET, _ORDER, _NOISE, _NUM_COMMON = range(4)  # first columns of the uniforms; bands follow


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """The operations on N views; every field is a tensor on the device.

    The order of application is kept only where it matters: between maps, between lines, and in the
    three fields ``blurred_after``, ``line_of_patch`` and ``noise_first``, None if never needed.
    """

    maps: torch.Tensor  # (N, K, 2, 3) affine, in order of application, see ``Stage.geometry``
    blur: torch.Tensor  # (N,) sigma of a Gaussian in pixels of the view, 0 for none
    blurred_after: torch.Tensor | None  # (N,) number of maps applied before the blur; None: all
    lines: torch.Tensor  # (N, L, 4, C) in order of application, see ``Stage.line``
    line_of_patch: torch.Tensor | None  # (N, L) bool, about the patch's mean instead of the view's
    noise: torch.Tensor  # (N,) standard deviation of multiplicative noise, 0 for none
    noise_first: torch.Tensor | None  # (N,) bool, noise on the patch's pixels before all else
    noise_window: torch.Tensor  # (N,) uniform in [0, 1), selects the noise
    keep: torch.Tensor | None  # (N, C) 0 for a blanked band, else 1; None: no band is blanked

    def __len__(self) -> int:
        return len(self.blur)

    def part(self, views: slice | torch.Tensor) -> ViewParameters:
        """Return the parameters of some of the views; a slice does not copy."""
        values = [getattr(self, one.name) for one in fields(self)]
        some: list[Any] = [value if value is None else value[views] for value in values]
        return ViewParameters(*some)


class ParameterSampler:
    """Draws parameters for a preset; constants are built once, so no draw copies from the host.

    The uniforms of each operation have a fixed position in the stream, whatever the preset; those
    of an operation appended to ``OPERATIONS`` come after all others.
    """

    def __init__(self, preset: Preset, seed: int, num_bands: int, device: torch.device) -> None:
        self.preset, self._num_bands = preset, num_bands
        self._generator = Philox(seed, device)
        self._maps, self._lines = preset.of_stage(Stage.geometry), preset.of_stage(Stage.line)
        self._strengths = {
            name: preset.strengths.get(name, strength.default)
            for operation in OPERATIONS.values()
            for name, strength in operation.strengths.items()
        }
        self._columns: dict[str, slice] = {}
        end = _NUM_COMMON + num_bands
        for name, operation in OPERATIONS.items():
            start, end = end, end + 1 + operation.num_uniforms + operation.num_per_band * num_bands
            self._columns[name] = slice(start, end)
        self._num = end
        ranks = [
            [couplet.index(name) if name in couplet else 2 for name in OPERATIONS]
            for couplet in preset.couplets
        ]
        self._ranks = torch.tensor(ranks, dtype=torch.int64, device=device)
        self._identities = {
            Stage.geometry: torch.tensor([[1.0, 0, 0], [0, 1, 0]], device=device),
            Stage.line: torch.tensor([1.0, 0, 0, 0], device=device)[:, None],
        }
        self._moves = frozenset(self._maps)
        self._blurs = preset.of_stage(Stage.blur)
        self._noises = preset.of_stage(Stage.noise)

    def draw(self, epoch: Epoch, sample_id: torch.Tensor, view: torch.Tensor) -> ViewParameters:
        """Draw the parameters of N views: ``sample_id`` and ``view`` are (N,) int64."""
        u = self._generator.uniforms(epoch, sample_id, view, self._num)
        order = _Order(self.preset, self._columns, self._ranks, u)
        others = self.preset.operations - frozenset(self._noises)
        noise_opens = order.opening(self._noises[:1], others)
        drop = u[:, _NUM_COMMON : _NUM_COMMON + self._num_bands]
        return ViewParameters(
            maps=self._chain(self._maps, (2, 3), order, u),
            blur=self._single(self._blurs, order, u),
            blurred_after=order.num_before(self._blurs, self._moves),
            lines=self._chain(self._lines, (4, self._num_bands), order, u),
            line_of_patch=order.opening(self._lines, self._moves),
            noise=self._single(self._noises, order, u),
            noise_first=None if noise_opens is None else noise_opens[:, 0],
            noise_window=u[:, _NOISE],
            keep=(drop >= self.preset.band_drop).float() if self.preset.band_drop else None,
        )

    def _parameter(self, name: str, order: _Order, u: torch.Tensor) -> torch.Tensor:
        """Return an operation's parameters, the identity for views that do not get it."""
        operation, own = OPERATIONS[name], u[:, self._columns[name]]
        turns_freely = name == "rotation" and self.preset.rotation is Rotation.free
        function = free_rotation if turns_freely else operation.function
        value = function(self._strengths, own[:, 1:])
        if name in order.always:
            return value
        chosen = order.chosen[name].view(-1, *[1] * (value.ndim - 1))
        return torch.where(chosen, value, self._identities.get(operation.stage, 0.0))

    def _chain(
        self, names: tuple[str, ...], shape: tuple[int, int], order: _Order, u: torch.Tensor
    ) -> torch.Tensor:
        """Return the parameters of several operations in order of application: (N, K, *shape)."""
        if not names:
            return u.new_empty(len(u), 0, *shape)
        each = [self._parameter(name, order, u).expand(-1, *shape) for name in names]
        chain = torch.stack(each, 1)
        if order.is_fixed or len(names) == 1:
            return chain
        ranks = [torch.as_tensor(order.rank[name]) for name in names]
        first = torch.stack(ranks, 1).argsort(stable=True, dim=1)
        return chain.take_along_dim(first[:, :, None, None], 1)

    def _single(self, names: tuple[str, ...], order: _Order, u: torch.Tensor) -> torch.Tensor:
        # (N,) parameter of a stage's only operation; 0 if there is none
        return self._parameter(names[0], order, u) if names else u.new_zeros(len(u))


class _Order:
    """The views that get each operation, and its rank among the operations of a view."""

    def __init__(
        self, preset: Preset, columns: dict[str, slice], ranks: torch.Tensor, u: torch.Tensor
    ) -> None:
        self.preset, self._like = preset, u
        self.is_fixed = not preset.couplets
        self.always = {name for name, chance in preset.probabilities.items() if chance >= 1}
        self.chosen: dict[str, torch.Tensor] = {}
        self.rank: dict[str, torch.Tensor | int] = {}
        if preset.couplets:
            position = ranks[(u[:, _COUPLET] * len(ranks)).long()]
            swapped = (u[:, _ORDER] < 0.5)[:, None] & (position < 2)
            position = torch.where(swapped, 1 - position, position)
            self.rank = dict(zip(OPERATIONS, position.unbind(1), strict=True))
            self.chosen = dict(zip(OPERATIONS, (position < 2).unbind(1), strict=True))
            return
        for number, (name, chance) in enumerate(preset.probabilities.items()):
            self.chosen[name] = u[:, columns[name].start] < chance
            self.rank[name] = number

    def num_before(self, names: tuple[str, ...], others: frozenset[str]) -> torch.Tensor | None:
        """Return how many of the others come before an operation: (N,); None: always all.

        An operation that a view does not get is an identity, so it may be counted or not.
        """
        if not names or not self.preset.may_precede(names[0], others):
            return None
        earlier = sum(self.rank[other] < self.rank[names[0]] for other in others)
        if isinstance(earlier, torch.Tensor):
            return earlier
        return self._like.new_full((len(self._like),), earlier, dtype=torch.int64)

    def opening(self, names: tuple[str, ...], others: frozenset[str]) -> torch.Tensor | None:
        """Return which views get each operation, then some of the others: (N, len(names)) bool."""
        if not any(self.preset.may_precede(name, others) for name in names):
            return None
        some = torch.stack([self.chosen[other] for other in others]).any(0)
        opening = []
        for name in names:
            earlier = [self.chosen[one] & (self.rank[one] < self.rank[name]) for one in others]
            opening.append(self.chosen[name] & some & ~torch.stack(earlier).any(0))
        return torch.stack(opening, 1)


def on_host(device: torch.device) -> bool:
    """Return whether reading a value, or starting many small operations, is cheap: on a CPU."""
    return device.type == "cpu"


def selected(flags: torch.Tensor) -> torch.Tensor | None:
    """Return the indices of the flagged views on a CPU: (N,) bool to (M,) int64.

    None on a GPU, where counting them would force a host sync: process all views instead.
    """
    return flags.nonzero().squeeze(1) if on_host(flags.device) else None
