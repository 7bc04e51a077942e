"""Simulated Sentinel-2: a seed and a scene's number come in, native band groups and labels go out.

A region is a square of 2 x 2 patches of a tile. Smooth random fields and a net of field parcels
make its land-cover map, the same on all dates. On a date, each class is a mixture of endmember
spectra that follows the season; slopes, haze and grain change the light; 20 m and 60 m pixels are
means of the mixture at 10 m; each band adds its own noise on its own grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from preprocess.bands import L2A_BANDS, native_groups
from preprocess.land import CLASSES, TILES, Landscape, Tile, habits, mixtures, spectra
from preprocess.shards.format import SATURATED

PATCH_PX = 120
SIDE_PATCHES = 2
SIDE_PX = SIDE_PATCHES * PATCH_PX
BLOCKS_PER_SIDE = 30  # regions along a tile; one patch of every three stays empty between them
SEASONS = ("summer", "winter")
PATCHES_PER_SCENE = SIDE_PATCHES**2
PATCHES_PER_REGION = PATCHES_PER_SCENE * len(SEASONS)
NUM_REGIONS = len(TILES) * BLOCKS_PER_SIDE**2
YEARS = 8
MAX_PATCHES = NUM_REGIONS * PATCHES_PER_REGION * YEARS

# Regions are dealt to splits in turn; with four tiles and five turns every tile has every split.
SPLITS = ("train", "train", "train", "validation", "test")
MIN_LABEL_SHARE = 0.05  # of the patch; a smaller piece of a class is not labelled
# Deviation of the noise of each band, in stored values, in the order of L2A_BANDS.
_NOISE = dict(zip(L2A_BANDS, (18, 15, 15, 16, 20, 22, 25, 26, 26, 45, 22, 22), strict=True))
# What a hazy day adds, falling with wavelength, in stored values.
_HAZE = np.array([160, 120, 70, 50, 35, 25, 18, 15, 12, 10, 3, 1], np.float32)

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """One region on one date.

    Attributes:
        region: number of the region, which decides tile, place and split.
        season: index into ``SEASONS``.
        year: years after 2017.
    """

    region: int
    season: int
    year: int

    @property
    def tile(self) -> Tile:
        """The tile the region lies in."""
        return TILES[self.region % len(TILES)]

    @property
    def split(self) -> str:
        """The split of the region's ground, whatever the date."""
        return SPLITS[self.region % len(SPLITS)]

    @property
    def corner(self) -> tuple[int, int]:
        """Column and row in the tile of the region's upper left patch."""
        # a stride without common divisor visits all blocks and scatters neighbours in number
        block = self.region // len(TILES) * 173 % BLOCKS_PER_SIDE**2
        row, column = divmod(block, BLOCKS_PER_SIDE)
        return column * (SIDE_PATCHES + 1), row * (SIDE_PATCHES + 1)


def scene_of(number: int) -> Scene:
    """Return a scene by number: first the seasons, then the regions, then the years."""
    rest, season = divmod(number, len(SEASONS))
    year, region = divmod(rest, NUM_REGIONS)
    return Scene(region, season, year)


@dataclass(frozen=True, slots=True)
class Land:
    """What does not change with the date.

    Attributes:
        cover: (SIDE_PX, SIDE_PX) index into ``CLASSES``.
        vigour: (SIDE_PX, SIDE_PX) how much better than usual plants do here, unit deviation.
        slope: (2, SIDE_PX, SIDE_PX) rise to the east and to the south, unit deviation.
    """

    cover: npt.NDArray[np.intp]
    vigour: Float
    slope: Float


def make_land(seed: int, region: int) -> Land:
    """Return the land of a region; it depends on nothing but seed and region."""
    random = np.random.default_rng([seed, region])
    landscape = TILES[region % len(TILES)].landscape
    height = 0.75 * _smooth(random, 5) + np.float32(0.66 * random.standard_normal())
    kinds = _smooth(random, 6)
    parcels, vigour = _parcels(random)
    return Land(
        cover=_classify(landscape, height, kinds, parcels),
        vigour=np.float32(0.8) * vigour + np.float32(0.6) * kinds,
        slope=_slopes(random, 9),
    )


def observe(seed: int, scene: Scene, land: Land) -> dict[str, npt.NDArray[np.uint16]]:
    """Return what the satellite sees: pixels by native band group, (bands, side, side) uint16."""
    random = np.random.default_rng([seed, scene.region, scene.season, scene.year, 1])
    mixture = _mixture(scene, land, random)
    haze = _HAZE * np.float32(random.gamma(2.0, 0.5))
    pixels = {}
    for name, bands in native_groups(L2A_BANDS).items():
        shrink = int(name[1:]) // 10
        columns = [L2A_BANDS.index(band) for band in bands]
        side = SIDE_PX // shrink
        mixed = _mean_of_blocks(mixture, shrink).reshape(len(mixture), -1)
        values = spectra().T[columns] @ mixed + haze[columns, None]
        noise = random.standard_normal(values.shape, np.float32)
        values += noise * np.array([[_NOISE[band]] for band in bands], np.float32)
        # never nodata, never saturated: both have a meaning
        np.clip(np.rint(values, out=values), 1, SATURATED - 1, out=values)
        pixels[name] = values.astype(np.uint16).reshape(len(bands), side, side)
    return pixels


def labels_of(cover: npt.NDArray[np.intp]) -> list[str]:
    """Return the classes that take at least five per cent of a land-cover map."""
    shares = np.bincount(cover.ravel(), minlength=len(CLASSES)) / cover.size
    return [CLASSES[index] for index in np.flatnonzero(shares >= MIN_LABEL_SHARE)]


def _mixture(scene: Scene, land: Land, random: np.random.Generator) -> Float:
    """Return shares of endmembers times brightness, (endmembers, SIDE_PX, SIDE_PX)."""
    flat = land.cover.ravel()
    usual, spread, texture = habits(SEASONS[scene.season]).T
    green = np.clip(usual[flat] + spread[flat] * land.vigour.ravel(), 0, 1)
    grain = texture[flat] * random.standard_normal(flat.shape, np.float32)
    light = np.clip(_light(scene, land, random).ravel() + grain, 0.2, 2.0)
    bare = mixtures("bare").T
    gain = mixtures("green").T - bare
    shares = np.take(gain, flat, axis=1) * green + np.take(bare, flat, axis=1)
    return np.asarray(shares * light).reshape(-1, SIDE_PX, SIDE_PX)


def _light(scene: Scene, land: Land, random: np.random.Generator) -> Float:
    # the morning sun stands in the south-east, lower in winter: longer shade on slopes
    strength = scene.tile.landscape.relief * (1.0, 1.8)[scene.season]
    azimuth = np.deg2rad(random.uniform(140, 165))
    east, south = np.float32(-strength * np.sin(azimuth)), np.float32(strength * np.cos(azimuth))
    level = np.float32(random.uniform(0.94, 1.06))
    return np.asarray(level + east * land.slope[0] + south * land.slope[1])


def _classify(
    landscape: Landscape, height: Float, kinds: Float, parcels: Float
) -> npt.NDArray[np.intp]:
    """Return the class of every pixel: height decides the zone, parcels or kinds the class."""
    shares = np.cumsum([share for share, _, _ in landscape.zones])[:-1]
    bounds = [NormalDist().inv_cdf(share) for share in shares]
    zone = np.searchsorted(np.array(bounds, np.float32), height)
    # an even share of a smooth field: close to the normal distribution's own function
    evenly = 1 / (1 + np.exp(np.float32(-1.702) * kinds))
    cover = np.zeros(height.shape, np.intp)
    for number, (_, by_parcel, names) in enumerate(landscape.zones):
        codes = np.array([CLASSES.index(name) for name in names])
        pick = (parcels if by_parcel else evenly) * len(names)
        cover = np.where(zone == number, codes[np.minimum(pick.astype(int), len(names) - 1)], cover)
    return cover


def _parcels(random: np.random.Generator) -> tuple[Float, Float]:
    """Return two values for every pixel that are constant in each field: uniform, and normal."""
    angle = random.uniform(0, np.pi)
    long, short = random.uniform(25, 50), random.uniform(14, 28)  # sides of a field in pixels
    y, x = np.ogrid[:SIDE_PX, :SIDE_PX]
    bend = 4 * _smooth(random, 5)
    along = (x * np.cos(angle) + y * np.sin(angle) + bend) / long
    across = (y * np.cos(angle) - x * np.sin(angle) + bend) / short
    # a table of fields that repeats only outside the region
    cells = (np.floor(along).astype(int) % 32, np.floor(across).astype(int) % 32)
    uniform = random.random((32, 32), np.float32)
    normal = random.standard_normal((32, 32), np.float32)
    return uniform[cells], normal[cells]


def _smooth(random: np.random.Generator, knots: int) -> Float:
    """Return a smooth field of unit deviation, (SIDE_PX, SIDE_PX); more knots, more hills."""
    weights, _ = _bumps(knots)
    bumps = random.standard_normal((weights.shape[1],) * 2, np.float32)
    return np.asarray(weights @ bumps @ weights.T)


def _slopes(random: np.random.Generator, knots: int) -> Float:
    weights, slopes = _bumps(knots)
    bumps = random.standard_normal((weights.shape[1],) * 2, np.float32)
    return np.stack([weights @ bumps @ slopes.T, slopes @ bumps @ weights.T])


@lru_cache(maxsize=8)
def _bumps(knots: int) -> tuple[Float, Float]:
    """Return Gaussian bumps along a side and their derivatives, each row of unit length."""
    spacing = SIDE_PX / knots
    centres = (np.arange(-1, knots + 1) + 0.5) * spacing
    distance = (np.arange(SIDE_PX)[:, None] + 0.5 - centres) / (0.7 * spacing)
    weights = np.exp(-0.5 * distance**2)
    slopes = -distance * weights
    return _unit_rows(weights), _unit_rows(slopes)


def _unit_rows(matrix: npt.NDArray[np.float64]) -> Float:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def _mean_of_blocks(field: Float, side: int) -> Float:
    """Return means over blocks of side x side pixels, (n, SIDE_PX / side, SIDE_PX / side)."""
    if side == 1:
        return field
    total = sum(field[:, i::side, j::side] for i in range(side) for j in range(side))
    return np.asarray(total / np.float32(side * side))
