"""What simulated land is made of: endmember spectra, land-cover classes, and four landscapes.

The reflectances are round numbers of the kind seen in L2A products, chosen so that classes differ
as they do in nature: by red edge, water absorption and season. They are measured nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Stored values (reflectance x 10000), in the order of L2A_BANDS:
# B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12
ENDMEMBERS: dict[str, tuple[int, ...]] = {
    "crop": (180, 240, 600, 280, 1050, 3300, 4300, 4500, 4700, 4750, 2000, 850),
    "broadleaf": (160, 210, 430, 230, 800, 2500, 3300, 3450, 3600, 3650, 1600, 700),
    "conifer": (120, 160, 310, 190, 500, 1500, 1950, 2050, 2200, 2250, 900, 400),
    "straw": (520, 720, 1100, 1450, 1900, 2300, 2550, 2700, 2900, 2950, 3700, 2600),
    "soil": (550, 760, 1080, 1400, 1650, 1800, 1950, 2100, 2250, 2300, 2950, 2500),
    "water": (420, 390, 330, 200, 170, 140, 130, 120, 100, 90, 50, 30),
    "built": (1150, 1300, 1450, 1550, 1650, 1750, 1820, 1900, 1950, 1980, 2000, 1800),
}

Mix = dict[str, float]


@dataclass(frozen=True, slots=True)
class Cover:
    """A land-cover class, a mixture of endmembers that moves with the season.

    Attributes:
        green: mixture when the plants are at their best, shares that sum to 1.
        bare: mixture when they are gone or dry.
        summer: share of the green mixture in summer.
        winter: the same in winter.
        spread: deviation of that share from field to field.
        texture: relative deviation of brightness from pixel to pixel.
    """

    green: Mix
    bare: Mix
    summer: float
    winter: float
    spread: float
    texture: float


_SOIL: Mix = {"soil": 1.0}
_STRAW: Mix = {"straw": 1.0}

COVERS: dict[str, Cover] = {
    "Discontinuous urban fabric": Cover(
        {"built": 0.55, "broadleaf": 0.45}, {"built": 0.75, "soil": 0.25}, 0.6, 0.4, 0.10, 0.22
    ),
    "Industrial or commercial units": Cover(
        {"built": 0.9, "crop": 0.1}, {"built": 1.0}, 0.5, 0.5, 0.10, 0.30
    ),
    "Non-irrigated arable land": Cover(
        {"crop": 1.0}, {"straw": 0.6, "soil": 0.4}, 0.35, 0.40, 0.28, 0.04
    ),
    "Permanently irrigated land": Cover({"crop": 1.0}, _SOIL, 0.92, 0.08, 0.06, 0.03),
    "Vineyards": Cover(
        {"crop": 0.45, "soil": 0.55}, {"soil": 0.8, "straw": 0.2}, 0.75, 0.1, 0.12, 0.11
    ),
    "Olive groves": Cover(
        {"broadleaf": 0.4, "soil": 0.6}, {"broadleaf": 0.3, "straw": 0.7}, 0.4, 0.7, 0.12, 0.15
    ),
    "Pastures": Cover({"crop": 0.9, "straw": 0.1}, _STRAW, 0.85, 0.75, 0.10, 0.03),
    "Complex cultivation patterns": Cover(
        {"crop": 0.7, "broadleaf": 0.2, "built": 0.1}, {"soil": 0.6, "straw": 0.4},
        0.55, 0.35, 0.25, 0.12,
    ),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": Cover(
        {"crop": 0.5, "broadleaf": 0.5}, {"straw": 0.5, "broadleaf": 0.2, "soil": 0.3},
        0.65, 0.35, 0.15, 0.10,
    ),
    "Agro-forestry areas": Cover(
        {"broadleaf": 0.45, "crop": 0.3, "straw": 0.25}, {"straw": 0.7, "broadleaf": 0.3},
        0.3, 0.75, 0.10, 0.13,
    ),
    "Broad-leaved forest": Cover(
        {"broadleaf": 1.0}, {"soil": 0.5, "straw": 0.3, "conifer": 0.2}, 0.95, 0.15, 0.05, 0.08
    ),
    "Coniferous forest": Cover(
        {"conifer": 1.0}, {"conifer": 0.7, "soil": 0.3}, 0.9, 0.8, 0.08, 0.09
    ),
    "Mixed forest": Cover(
        {"broadleaf": 0.5, "conifer": 0.5}, {"conifer": 0.5, "soil": 0.5}, 0.95, 0.25, 0.06, 0.10
    ),
    "Moors and heathland": Cover(
        {"broadleaf": 0.3, "straw": 0.5, "conifer": 0.2}, {"straw": 0.6, "soil": 0.4},
        0.7, 0.4, 0.12, 0.06,
    ),
    "Sclerophyllous vegetation": Cover(
        {"broadleaf": 0.35, "conifer": 0.35, "soil": 0.3}, {"soil": 0.6, "straw": 0.4},
        0.6, 0.7, 0.12, 0.12,
    ),
    "Transitional woodland/shrub": Cover(
        {"broadleaf": 0.6, "straw": 0.25, "conifer": 0.15}, {"straw": 0.6, "conifer": 0.4},
        0.8, 0.3, 0.12, 0.12,
    ),
    "Peatbogs": Cover(
        {"straw": 0.35, "conifer": 0.35, "water": 0.3}, {"straw": 0.4, "soil": 0.2, "water": 0.4},
        0.7, 0.3, 0.10, 0.05,
    ),
    "Water bodies": Cover({"water": 1.0}, {"water": 0.9, "soil": 0.1}, 0.9, 0.8, 0.03, 0.03),
    "Sea and ocean": Cover({"water": 1.0}, {"water": 1.0}, 1.0, 1.0, 0.0, 0.06),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Landscape:
    """What grows where: zones from the lowest to the highest ground, each with its classes.

    Attributes:
        zones: share of the ground, whether fields decide the class (else it changes smoothly),
            and class names, of which each takes an equal part of the zone.
        relief: strength of light and shade on slopes.
    """

    zones: tuple[tuple[float, bool, tuple[str, ...]], ...]
    relief: float


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of the grid of Sentinel-2, with its upper left corner and what is seen there.

    Attributes:
        name: MGRS tile.
        epsg: UTM zone.
        x: easting of the upper left corner in metres.
        y: northing of the upper left corner in metres.
        stamps: for summer and winter: month and day, time as names spell it, time of the clock.
        landscape: what grows there.
    """

    name: str
    epsg: int
    x: int
    y: int
    stamps: tuple[tuple[str, str, str], tuple[str, str, str]]
    landscape: Landscape


_MIXED_FARMING = (
    "Land principally occupied by agriculture, with significant areas of natural vegetation"
)

TILES: tuple[Tile, ...] = (
    Tile(
        "29SND", 32629, 499980, 4400040,
        (("0718", "112119", "112119"), ("1221", "112501", "112501")),
        Landscape(
            (
                (0.08, False, ("Water bodies",)),
                (0.42, True, ("Permanently irrigated land", "Non-irrigated arable land",
                              "Olive groves", "Vineyards", "Complex cultivation patterns")),
                (0.10, False, ("Discontinuous urban fabric",)),
                (0.40, False, ("Agro-forestry areas", "Sclerophyllous vegetation",
                               "Broad-leaved forest", "Transitional woodland/shrub")),
            ),
            0.10,
        ),
    ),
    Tile(
        "29UPU", 32629, 600000, 5900040,
        (("0617", "113321", "113321"), ("0112", "113429", "113429")),
        Landscape(
            (
                (0.10, False, ("Sea and ocean",)),
                (0.55, True, ("Pastures", "Pastures", "Non-irrigated arable land", _MIXED_FARMING)),
                (0.10, False, ("Discontinuous urban fabric",)),
                (0.25, False, ("Moors and heathland", "Peatbogs", "Coniferous forest")),
            ),
            0.06,
        ),
    ),
    Tile(
        "33UUP", 32633, 300000, 5400000,
        (("0613", "101031", "101031"), ("0215", "101131", "101131")),
        Landscape(
            (
                (0.06, False, ("Water bodies",)),
                (0.14, False, ("Discontinuous urban fabric", "Industrial or commercial units")),
                (0.45, True, ("Non-irrigated arable land", "Non-irrigated arable land",
                              "Pastures", "Complex cultivation patterns")),
                (0.35, False, ("Broad-leaved forest", "Mixed forest", "Coniferous forest")),
            ),
            0.12,
        ),
    ),
    Tile(
        # five digits, as in the real archive: an identifier, but no longer a time of the clock
        "35VPK", 32635, 600000, 7000020,
        (("0724", "93020", "093020"), ("0304", "94161", "094156")),
        Landscape(
            (
                (0.18, False, ("Water bodies",)),
                (0.15, True, ("Non-irrigated arable land", _MIXED_FARMING)),
                (0.52, False, ("Coniferous forest", "Mixed forest",
                               "Transitional woodland/shrub")),
                (0.15, False, ("Peatbogs",)),
            ),
            0.08,
        ),
    ),
)  # fmt: skip

CLASSES: tuple[str, ...] = tuple(COVERS)


def spectra() -> npt.NDArray[np.float32]:
    """Return the endmember spectra, (endmembers, bands of L2A_BANDS) stored values."""
    return np.array(list(ENDMEMBERS.values()), np.float32)


def mixtures(state: str) -> npt.NDArray[np.float32]:
    """Return the ``green`` or ``bare`` mixture of every class, (classes, endmembers)."""
    mixes: list[Mix] = [getattr(cover, state) for cover in COVERS.values()]
    return np.array([[mix.get(name, 0.0) for name in ENDMEMBERS] for mix in mixes], np.float32)


def habits(season: str) -> npt.NDArray[np.float32]:
    """Return (classes, 3): usual share of green in summer or winter, its spread, the texture."""
    rows = [(getattr(cover, season), cover.spread, cover.texture) for cover in COVERS.values()]
    return np.array(rows, np.float32)
