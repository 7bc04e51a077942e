"""Which operations a view gets, and in which order: settings come in, a rule of choice goes out.

The nine operations are those of the SimCLR-S2 study (2021), whose code left several sets of
parameters (``simclr.config.Variant``). The other two are of SimCLR itself and of remote sensing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from simclr.config import AugmentConfig, Rotation, Variant

PIXEL = ("blur", "brightness", "contrast", "gain", "speckle")
GEOMETRIC = ("flip", "rotation", "shift", "zoom")
NINE = PIXEL + GEOMETRIC
# Not of the study: SimCLR's random resized crop, and one of the eight symmetries of the square.
OPERATIONS = (*NINE, "crop", "symmetry")
MOTIONS = ("crop", "zoom", "shift", "rotation", "flip", "symmetry")
# Where no order is given: what moves pixels first, so that noise stays as sharp as a sensor's.
USUAL_ORDER = (*MOTIONS, "blur", "contrast", "gain", "brightness", "speckle")

Couplet = tuple[str, str]

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


@dataclass(frozen=True, slots=True)
class Preset:
    """A rule of choice.

    Attributes:
        name: as written into the run record.
        variant: parameters of the operations.
        probabilities: chance of each operation, independent of the others, in order of
            application.
        couplets: if given, exactly one of these pairs is applied, each equally likely and in
            either order.
        rotation: how ``rotation`` turns.
        band_drop: chance that a band is blanked.
    """

    name: str
    variant: Variant
    probabilities: dict[str, float]
    couplets: tuple[Couplet, ...] = ()
    rotation: Rotation = Rotation.quarter
    band_drop: float = 0.0

    @property
    def operations(self) -> frozenset[str]:
        """Every operation that a view may get."""
        single = {name for name, chance in self.probabilities.items() if chance > 0}
        return frozenset(single | {name for couplet in self.couplets for name in couplet})

    @property
    def motions(self) -> tuple[str, ...]:
        """The geometric operations that a view may get."""
        return tuple(name for name in MOTIONS if name in self.operations)

    def may_precede(self, first: str, others: frozenset[str]) -> bool:
        """Say whether ``first`` may be applied before one of the others in some view."""
        if any(first in couplet and set(couplet) & (others - {first}) for couplet in self.couplets):
            return True
        order = list(self.probabilities)
        return first in order and bool(set(order[order.index(first) + 1 :]) & others)


def allowed_couplets() -> tuple[Couplet, ...]:
    """Return the 27 couplets that the study left in."""
    return tuple(pair for pair in combinations(NINE, 2) if frozenset(pair) not in BANNED)


def preset_of(config: AugmentConfig) -> Preset:
    """Return the preset that the settings name.

    Raises:
        ValueError: unknown preset or operation; the message lists the valid names.
    """
    variant, probabilities, couplets = _rule(config)
    preset = Preset(
        _name(config), variant, probabilities, couplets, config.rotation, config.band_drop
    )
    if config.rotation is Rotation.free and "rotation" not in preset.operations:
        raise ValueError(
            f"augment.rotation is free, but augment.preset={config.preset} never rotates; "
            "take a preset with the operation rotation, or rotation=quarter"
        )
    return preset


def _rule(config: AugmentConfig) -> tuple[Variant, dict[str, float], tuple[Couplet, ...]]:
    if config.preset == "list":
        for name in config.operations:
            _check_operation("augment.operations", name)
        return config.variant, dict.fromkeys(config.operations, 1.0), ()
    if config.preset == "couplets":
        return config.variant, {}, tuple(_couplet(text) for text in config.couplets)
    rules = _named_rules()
    if config.preset not in rules:
        raise ValueError(
            f"augment.preset is {config.preset!r}; valid names: {', '.join(rules)}, list, couplets"
        )
    return rules[config.preset]


def _named_rules() -> dict[str, tuple[Variant, dict[str, float], tuple[Couplet, ...]]]:
    couplets, corrected = allowed_couplets(), Variant.corrected
    moved = {"crop": 1.0, "symmetry": 1.0}
    pixel = {"blur": 0.5, "contrast": 0.8, "gain": 0.8, "brightness": 0.8, "speckle": 0.2}
    return {
        "paper_literal": (Variant.literal, {}, couplets),
        "paper": (Variant.paper, {}, couplets),
        "corrected": (corrected, {}, couplets),
        "standard": (corrected, moved | pixel, ()),
        "geometric_standard": (corrected, moved, ()),
        "none": (corrected, {}, ()),
        "all": (corrected, _always(NINE), ()),
        "geometric": (corrected, _always(GEOMETRIC), ()),
        "pixel": (corrected, _always(PIXEL), ()),
    }


def _always(operations: tuple[str, ...]) -> dict[str, float]:
    return {name: 1.0 for name in USUAL_ORDER if name in operations}


def _couplet(text: str) -> Couplet:
    names = text.split("+")
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(
            f"augment.couplets holds {text!r}; write two different operations, as in blur+gain"
        )
    for name in names:
        _check_operation("augment.couplets", name)
    return names[0], names[1]


def _check_operation(field_name: str, name: str) -> None:
    if name not in OPERATIONS:
        raise ValueError(f"{field_name} holds {name!r}; valid names: {', '.join(OPERATIONS)}")


def _name(config: AugmentConfig) -> str:
    """Return a name that says what was done: the order of a list is part of it."""
    named = {"list": "+".join(config.operations), "couplets": ",".join(config.couplets)}
    name = named.get(config.preset, config.preset)
    if config.preset in named and config.variant is not Variant.corrected:
        name += f" ({config.variant.value})"
    return name
