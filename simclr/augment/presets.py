"""Which operations a view gets: the name of a preset comes in, a rule of choice goes out.

The nine operations are those of the SimCLR-S2 study (2021), whose code left three sets of
parameters. ``paper_literal`` repeats the last of them, defects included; ``paper`` mends only its
zoom (no slivers of the patch) and gain (no inverted sign); ``corrected`` gives every operation the
physical meaning of its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from simclr.config import AugmentConfig

PIXEL = ("blur", "brightness", "contrast", "gain", "speckle")
GEOMETRIC = ("flip", "rotation", "shift", "zoom")
NINE = PIXEL + GEOMETRIC
# Not of the study: SimCLR's random resized crop, and one of the eight symmetries of the square.
OPERATIONS = (*NINE, "crop", "symmetry")

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


class Variant(Enum):
    """Parameters of the nine operations."""

    literal = "literal"
    paper = "paper"
    corrected = "corrected"


@dataclass(frozen=True, slots=True)
class Preset:
    """A rule of choice.

    Attributes:
        name: as written into the run record.
        variant: parameters of the operations.
        probabilities: chance of each operation, independent of the others.
        couplets: if given, exactly one of these pairs is applied, each equally likely.
    """

    name: str
    variant: Variant
    probabilities: dict[str, float]
    couplets: tuple[tuple[str, str], ...] = ()

    @property
    def operations(self) -> frozenset[str]:
        """Every operation that a view may get."""
        single = {name for name, chance in self.probabilities.items() if chance > 0}
        return frozenset(single | {name for couplet in self.couplets for name in couplet})


def allowed_couplets() -> tuple[tuple[str, str], ...]:
    """Return the 27 couplets that the study left in."""
    return tuple(pair for pair in combinations(NINE, 2) if frozenset(pair) not in BANNED)


def preset_of(config: AugmentConfig) -> Preset:
    """Return the preset that the settings name.

    Raises:
        ValueError: unknown preset or operation; the message lists the valid names.
    """
    if config.preset == "list":
        return _always(config.operations)
    presets = {preset.name: preset for preset in _presets()}
    if config.preset not in presets:
        raise ValueError(
            f"augment.preset is {config.preset!r}; valid names: {', '.join(presets)}, list"
        )
    return presets[config.preset]


def _presets() -> list[Preset]:
    couplets = allowed_couplets()
    pixel = {"brightness": 0.8, "contrast": 0.8, "gain": 0.8, "blur": 0.5, "speckle": 0.2}
    corrected = Variant.corrected
    return [
        Preset("paper_literal", Variant.literal, {}, couplets),
        Preset("paper", Variant.paper, {}, couplets),
        Preset("corrected", corrected, {}, couplets),
        Preset("standard", corrected, {"crop": 1.0, "symmetry": 1.0, **pixel}),
        Preset("geometric_standard", corrected, {"crop": 1.0, "symmetry": 1.0}),
        Preset("none", corrected, {}),
        Preset("all", corrected, dict.fromkeys(NINE, 1.0)),
        Preset("geometric", corrected, dict.fromkeys(GEOMETRIC, 1.0)),
        Preset("pixel", corrected, dict.fromkeys(PIXEL, 1.0)),
    ]


def _always(operations: list[str]) -> Preset:
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown:
        raise ValueError(
            f"augment.operations holds {unknown[0]!r}; valid names: {', '.join(OPERATIONS)}"
        )
    return Preset("+".join(operations), Variant.corrected, dict.fromkeys(operations, 1.0))
