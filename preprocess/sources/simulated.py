"""The source ``simulated``: patches synthesised from a seed, written and read as BigEarthNet v1.

A region is a square of 2 x 2 patches of a tile. Smooth random fields and a net of field parcels
make its land-cover map, the same on all dates. On a date, each class is a mixture of endmember
spectra that follows the season; slopes, haze and grain change the light; 20 m and 60 m pixels are
means of the mixture at 10 m; each band has noise of its own on its own grid. Every output is marked
as simulated: a marker file in the root, ids that begin with SIM, a tag in every GeoTIFF, product
names, manifest and shards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.bands import L2A_BANDS, native_groups
from preprocess.config import SourceConfig, require
from preprocess.progress import progress_of
from preprocess.raster import session, wkt_of, write_raster
from preprocess.shards.atomic_io import is_abandoned, temporary_path, write_json, write_text
from preprocess.shards.format import SATURATED, Patch, PatchRef, ShardLayout
from preprocess.sources.base import Source, read_splits
from preprocess.sources.bigearthnet import TREE, layout_of, patch_folders, read_patch, tree_of
from preprocess.tiling import PATCH_SIDE_M

MARKER = "SIMULATED.json"
NOTICE = "These patches were synthesised by a program. They show no place on Earth."
_VERSION = 1  # another number means other pixels for the same seed

PATCH_PX = 120
SIDE_PATCHES = 2
SIDE_PX = SIDE_PATCHES * PATCH_PX
PATCHES_PER_SCENE = SIDE_PATCHES**2
BLOCKS_PER_SIDE = 30  # regions along a tile; one patch of every three stays empty between them
SEASONS = ("summer", "winter")
YEARS = 8
# Regions are assigned to splits in turn; with four tiles and five turns every tile has every split.
SPLITS = ("train", "train", "train", "validation", "test")
MIN_LABEL_SHARE = 0.05  # of the patch; a smaller piece of a class is not labelled

# Reflectances x 10000, in the order of L2A_BANDS. Round numbers of the kind seen in L2A products,
# chosen so that classes differ as they do in nature, by red edge, water absorption and season;
# measured nowhere.
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
# Deviation of the noise of each band, and what a hazy day adds, in the same unit and order.
_NOISE = np.array((18, 15, 15, 16, 20, 22, 25, 26, 26, 45, 22, 22), np.float32)
_HAZE = np.array((160, 120, 70, 50, 35, 25, 18, 15, 12, 10, 3, 1), np.float32)

# Class: mixture of endmembers when green and when bare (shares sum to 1); share of the green one in
# summer and in winter, its deviation from field to field; relative deviation of brightness between
# pixels.
_FARMING = "Land principally occupied by agriculture, with significant areas of natural vegetation"
COVERS: dict[str, tuple[str, str, float, float, float, float]] = {
    "Discontinuous urban fabric":
        ("0.55 built 0.45 broadleaf", "0.75 built 0.25 soil", 0.6, 0.4, 0.1, 0.22),
    "Industrial or commercial units": ("0.9 built 0.1 crop", "1 built", 0.5, 0.5, 0.1, 0.3),
    "Non-irrigated arable land": ("1 crop", "0.6 straw 0.4 soil", 0.35, 0.4, 0.28, 0.04),
    "Permanently irrigated land": ("1 crop", "1 soil", 0.92, 0.08, 0.06, 0.03),
    "Vineyards": ("0.45 crop 0.55 soil", "0.8 soil 0.2 straw", 0.75, 0.1, 0.12, 0.11),
    "Olive groves": ("0.4 broadleaf 0.6 soil", "0.3 broadleaf 0.7 straw", 0.4, 0.7, 0.12, 0.15),
    "Pastures": ("0.9 crop 0.1 straw", "1 straw", 0.85, 0.75, 0.1, 0.03),
    "Complex cultivation patterns":
        ("0.7 crop 0.2 broadleaf 0.1 built", "0.6 soil 0.4 straw", 0.55, 0.35, 0.25, 0.12),
    _FARMING: ("0.5 crop 0.5 broadleaf", "0.5 straw 0.2 broadleaf 0.3 soil", 0.65, 0.35, 0.15, 0.1),
    "Agro-forestry areas":
        ("0.45 broadleaf 0.3 crop 0.25 straw", "0.7 straw 0.3 broadleaf", 0.3, 0.75, 0.1, 0.13),
    "Broad-leaved forest":
        ("1 broadleaf", "0.5 soil 0.3 straw 0.2 conifer", 0.95, 0.15, 0.05, 0.08),
    "Coniferous forest": ("1 conifer", "0.7 conifer 0.3 soil", 0.9, 0.8, 0.08, 0.09),
    "Mixed forest": ("0.5 broadleaf 0.5 conifer", "0.5 conifer 0.5 soil", 0.95, 0.25, 0.06, 0.1),
    "Moors and heathland":
        ("0.3 broadleaf 0.5 straw 0.2 conifer", "0.6 straw 0.4 soil", 0.7, 0.4, 0.12, 0.06),
    "Sclerophyllous vegetation":
        ("0.35 broadleaf 0.35 conifer 0.3 soil", "0.6 soil 0.4 straw", 0.6, 0.7, 0.12, 0.12),
    "Transitional woodland/shrub":
        ("0.6 broadleaf 0.25 straw 0.15 conifer", "0.6 straw 0.4 conifer", 0.8, 0.3, 0.12, 0.12),
    "Peatbogs":
        ("0.35 straw 0.35 conifer 0.3 water", "0.4 straw 0.2 soil 0.4 water", 0.7, 0.3, 0.1, 0.05),
    "Water bodies": ("1 water", "0.9 water 0.1 soil", 0.9, 0.8, 0.03, 0.03),
    "Sea and ocean": ("1 water", "1 water", 1, 1, 0, 0.06),
}  # fmt: skip
CLASSES: tuple[str, ...] = tuple(COVERS)

Float = npt.NDArray[np.float32]
Place = tuple[int, int]  # column and row within a region
_PLACES: list[Place] = [(c, r) for r in range(SIDE_PATCHES) for c in range(SIDE_PATCHES)]


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of Sentinel-2's grid and what is seen there.

    Attributes:
        name: MGRS tile.
        epsg: of its UTM zone.
        x: easting of the upper left corner in metres.
        y: northing of the upper left corner in metres.
        stamps: for summer and winter: month and day, time as names spell it, time of the clock.
        relief: strength of light and shade on slopes.
        zones: from the lowest to the highest ground: share of the ground, whether fields decide the
            class (else it changes smoothly), and classes, of which each takes an equal part.
    """

    name: str
    epsg: int
    x: int
    y: int
    stamps: tuple[tuple[str, str, str], tuple[str, str, str]]
    relief: float
    zones: tuple[tuple[float, bool, tuple[str, ...]], ...]


TILES: tuple[Tile, ...] = (
    Tile(
        "29SND", 32629, 499980, 4400040,
        (("0718", "112119", "112119"), ("1221", "112501", "112501")), 0.10,
        ((0.08, False, ("Water bodies",)),
         (0.42, True, ("Permanently irrigated land", "Non-irrigated arable land", "Olive groves",
                       "Vineyards", "Complex cultivation patterns")),
         (0.10, False, ("Discontinuous urban fabric",)),
         (0.40, False, ("Agro-forestry areas", "Sclerophyllous vegetation", "Broad-leaved forest",
                        "Transitional woodland/shrub"))),
    ),
    Tile(
        "29UPU", 32629, 600000, 5900040,
        (("0617", "113321", "113321"), ("0112", "113429", "113429")), 0.06,
        ((0.10, False, ("Sea and ocean",)),
         (0.55, True, ("Pastures", "Pastures", "Non-irrigated arable land", _FARMING)),
         (0.10, False, ("Discontinuous urban fabric",)),
         (0.25, False, ("Moors and heathland", "Peatbogs", "Coniferous forest"))),
    ),
    Tile(
        "33UUP", 32633, 300000, 5400000,
        (("0613", "101031", "101031"), ("0215", "101131", "101131")), 0.12,
        ((0.06, False, ("Water bodies",)),
         (0.14, False, ("Discontinuous urban fabric", "Industrial or commercial units")),
         (0.45, True, ("Non-irrigated arable land", "Non-irrigated arable land", "Pastures",
                       "Complex cultivation patterns")),
         (0.35, False, ("Broad-leaved forest", "Mixed forest", "Coniferous forest"))),
    ),
    Tile(
        # five digits, as in the real archive: an identifier, but no longer a time of the clock
        "35VPK", 32635, 600000, 7000020,
        (("0724", "93020", "093020"), ("0304", "94161", "094156")), 0.08,
        ((0.18, False, ("Water bodies",)),
         (0.15, True, ("Non-irrigated arable land", _FARMING)),
         (0.52, False, ("Coniferous forest", "Mixed forest", "Transitional woodland/shrub")),
         (0.15, False, ("Peatbogs",))),
    ),
)  # fmt: skip
NUM_REGIONS = len(TILES) * BLOCKS_PER_SIDE**2
MAX_PATCHES = NUM_REGIONS * PATCHES_PER_SCENE * len(SEASONS) * YEARS


@dataclass(kw_only=True, slots=True)
class SimulatedConfig(SourceConfig):
    """Synthesised patches, never measured: for trying the way from rasters to an encoder.

    Attributes:
        root: empty folder to write a BigEarthNet v1 tree to, or one that holds the same simulation.
        num_patches: patches to write.
        seed: another seed gives another world; the first patches do not depend on their number.
    """

    kind: str = "simulated"
    num_patches: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        require(self.num_patches >= 1, f"source.num_patches is {self.num_patches}; give 1 or more")
        require(self.seed >= 0, f"source.seed is {self.seed}; give 0 or more")


@dataclass(frozen=True, slots=True)
class Simulated(Source):
    """The source ``simulated``."""

    config: SimulatedConfig
    simulated = True

    def layout(self) -> ShardLayout:
        """Return the layout of a BigEarthNet v1 tree."""
        return layout_of(self.config.bands)

    def discover(self) -> Iterator[PatchRef]:
        """Write the tree unless it is there, then yield its patch folders."""
        root = Path(self.config.root)
        write_tree(root, self.config.num_patches, self.config.seed)
        splits = read_splits({split: str(root / _split_list(split)) for split in set(SPLITS)})
        for name in patch_folders(root):
            yield PatchRef(name, name, splits[name])

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one patch folder as a v1 patch."""
        return read_patch(tree_of(Path(self.config.root)), ref, layout)


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

    def stamp(self, of_clock: bool = False) -> str:
        """Return date and time, ``20170613T101031``, as names spell it or as the clock showed."""
        day, spelled, clock = self.tile.stamps[self.season]
        return f"{2017 + self.year}{day}T{clock if of_clock else spelled}"


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
    height = 0.75 * _smooth(random, 5) + np.float32(0.66 * random.standard_normal())
    kinds = _smooth(random, 6)
    parcels, vigour = _parcels(random)
    weights, slopes = _bumps(9)
    bumps = random.standard_normal((weights.shape[1],) * 2, np.float32)
    return Land(
        cover=_classify(TILES[region % len(TILES)], height, kinds, parcels),
        vigour=np.float32(0.8) * vigour + np.float32(0.6) * kinds,
        slope=np.stack([weights @ bumps @ slopes.T, slopes @ bumps @ weights.T]),
    )


def observe(seed: int, scene: Scene, land: Land) -> dict[str, npt.NDArray[np.uint16]]:
    """Return what the satellite sees: pixels by native band group, (bands, side, side) uint16."""
    random = np.random.default_rng([seed, scene.region, scene.season, scene.year, 1])
    mixture = _mixture(scene, land, random)
    haze = _HAZE * np.float32(random.gamma(2.0, 0.5))
    spectra = np.array(list(ENDMEMBERS.values()), np.float32)
    pixels = {}
    for name, bands in native_groups(L2A_BANDS).items():
        shrink = int(name[1:]) // 10
        columns = [L2A_BANDS.index(band) for band in bands]
        side = SIDE_PX // shrink
        mixed = _mean_of_blocks(mixture, shrink).reshape(len(mixture), -1)
        values = spectra.T[columns] @ mixed + haze[columns, None]
        values += random.standard_normal(values.shape, np.float32) * _NOISE[columns, None]
        # never nodata, never saturated: both have a meaning
        np.clip(np.rint(values, out=values), 1, SATURATED - 1, out=values)
        pixels[name] = values.astype(np.uint16).reshape(len(bands), side, side)
    return pixels


def labels_of(cover: npt.NDArray[np.intp]) -> list[str]:
    """Return the classes that take at least five per cent of a land-cover map."""
    shares = np.bincount(cover.ravel(), minlength=len(CLASSES)) / cover.size
    return [CLASSES[index] for index in np.flatnonzero(shares >= MIN_LABEL_SHARE)]


@lru_cache(maxsize=2)
def mixtures(bare: bool) -> Float:
    """Return the green or the bare mixture of every class, (classes, endmembers)."""
    rows = []
    for green_mix, bare_mix, *_ in COVERS.values():
        parts = (bare_mix if bare else green_mix).split()
        shares = dict(zip(parts[1::2], map(float, parts[::2]), strict=True))
        rows.append([shares.get(name, 0.0) for name in ENDMEMBERS])
    return np.array(rows, np.float32)


def _mixture(scene: Scene, land: Land, random: np.random.Generator) -> Float:
    """Return shares of endmembers times brightness, (endmembers, SIDE_PX, SIDE_PX)."""
    flat = land.cover.ravel()
    habits = [(cover[2 + scene.season], *cover[4:]) for cover in COVERS.values()]
    usual, spread, texture = np.array(habits, np.float32).T
    green = np.clip(usual[flat] + spread[flat] * land.vigour.ravel(), 0, 1)
    grain = texture[flat] * random.standard_normal(flat.shape, np.float32)
    # the morning sun stands in the south-east, lower in winter: longer shade on slopes
    strength = scene.tile.relief * (1.0, 1.8)[scene.season]
    azimuth = np.deg2rad(random.uniform(140, 165))
    east, south = np.float32(-strength * np.sin(azimuth)), np.float32(strength * np.cos(azimuth))
    level = np.float32(random.uniform(0.94, 1.06))
    light = level + east * land.slope[0] + south * land.slope[1]
    light = np.clip(light.ravel() + grain, 0.2, 2.0)
    bare = mixtures(True).T
    gain = mixtures(False).T - bare
    shares = np.take(gain, flat, axis=1) * green + np.take(bare, flat, axis=1)
    return np.asarray(shares * light).reshape(-1, SIDE_PX, SIDE_PX)


def _classify(tile: Tile, height: Float, kinds: Float, parcels: Float) -> npt.NDArray[np.intp]:
    """Return the class of every pixel: height decides the zone, parcels or kinds the class."""
    shares = np.cumsum([share for share, _, _ in tile.zones])[:-1]
    bounds = [NormalDist().inv_cdf(share) for share in shares]
    zone = np.searchsorted(np.array(bounds, np.float32), height)
    # an even share of a smooth field: close to the normal distribution's own function
    evenly = 1 / (1 + np.exp(np.float32(-1.702) * kinds))
    cover = np.zeros(height.shape, np.intp)
    for number, (_, by_parcel, names) in enumerate(tile.zones):
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


@lru_cache(maxsize=8)
def _bumps(knots: int) -> tuple[Float, Float]:
    """Return Gaussian bumps along a side and their derivatives, each row of unit length."""
    spacing = SIDE_PX / knots
    centres = (np.arange(-1, knots + 1) + 0.5) * spacing
    distance = (np.arange(SIDE_PX)[:, None] + 0.5 - centres) / (0.7 * spacing)
    weights = np.exp(-0.5 * distance**2)
    rows = (weights, -distance * weights)
    unit = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
    first, second = (np.asarray(row, np.float32) for row in unit)
    return first, second


def _mean_of_blocks(field: Float, side: int) -> Float:
    """Return means over blocks of side x side pixels, (n, SIDE_PX / side, SIDE_PX / side)."""
    if side == 1:
        return field
    total = sum(field[:, i::side, j::side] for i in range(side) for j in range(side))
    return np.asarray(total / np.float32(side * side))


def write_tree(root: Path, num_patches: int, seed: int) -> None:
    """Write a tree of simulated patches with split lists; a finished or begun one is completed.

    Patch i is the same for every ``num_patches`` above i. Ground keeps its split on all dates.

    Raises:
        ValueError: more patches than there is ground for, or the root holds anything else.
    """
    if num_patches > MAX_PATCHES:
        raise ValueError(
            f"source.num_patches is {num_patches}; there is ground for {MAX_PATCHES} patches"
        )
    # the marker keeps them: the same settings must mean the same pixels when a run goes on
    settings = {"notice": NOTICE, "version": _VERSION, "num_patches": num_patches, "seed": seed}
    if _is_complete(root, settings):
        return
    write_json(root / MARKER, {**settings, "complete": False})
    tree = root / TREE
    tree.mkdir(exist_ok=True)
    for leftover in filter(is_abandoned, tree.glob(".*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)  # another part may remove it at the same time
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    with session(), progress_of(num_patches, "simulate") as advance:
        for split, name in _write_patches(tree, num_patches, seed):
            names[split].append(name)
            advance(1)
    for split, listed in names.items():
        write_text(root / _split_list(split), "".join(f"{name}\n" for name in sorted(listed)))
    os.sync()  # the marker must not outlive the files it describes
    write_json(root / MARKER, {**settings, "complete": True})


def _split_list(split: str) -> str:
    return f"splits/{split}.csv"


def _is_complete(root: Path, settings: dict[str, Any]) -> bool:
    """Say whether the root holds all of this simulation; refuse it if it holds another thing."""
    marker = root / MARKER
    if not marker.is_file():
        # a hidden file may be the marker that another part is just about to put in place
        held = sorted(path.name for path in root.glob("[!.]*"))
        if held and not marker.is_file():
            raise ValueError(
                f"source.root {root} is not empty (it holds {held[0]}) and holds no simulation; "
                "give an empty or new folder"
            )
        return False
    found = json.loads(marker.read_bytes())
    complete = bool(found.pop("complete"))
    if found != settings:
        changed = [f"{key} {found.get(key)}" for key in settings if found.get(key) != settings[key]]
        raise ValueError(
            f"source.root {root} holds another simulation (of {', '.join(changed)}); "
            "give another folder or remove it"
        )
    return complete


def _write_patches(tree: Path, num_patches: int, seed: int) -> Iterator[tuple[str, str]]:
    """Write the patches that are not there yet, scene by scene; yield split and name of all."""
    land_of = lru_cache(maxsize=1)(make_land)  # both seasons of a region follow each other
    for number in range(-(-num_patches // PATCHES_PER_SCENE)):
        scene = scene_of(number)
        column, row = scene.corner
        wanted = min(PATCHES_PER_SCENE, num_patches - number * PATCHES_PER_SCENE)
        places = {
            f"SIM_MSIL2A_{scene.stamp()}_{column + east}_{row + south}": (east, south)
            for east, south in _PLACES[:wanted]
        }
        missing = [name for name in places if not (tree / name).is_dir()]
        if missing:
            land = land_of(seed, scene.region)
            pixels = observe(seed, scene, land)
            for name in missing:
                _write_patch(tree / name, scene, places[name], land, pixels)
        for name in places:
            yield scene.split, name


def _write_patch(
    folder: Path, scene: Scene, place: Place, land: Land, pixels: dict[str, npt.NDArray[np.uint16]]
) -> None:
    """Write one patch folder, whole or not at all."""
    (column, row), (east, south), tile = scene.corner, place, scene.tile
    x = tile.x + (column + east) * PATCH_SIDE_M
    y = tile.y - (row + south) * PATCH_SIDE_M

    def window(size_px: int) -> tuple[slice, slice]:
        """Return the rows and columns of the patch on a grid of this size."""
        return (
            slice(south * size_px, (south + 1) * size_px),
            slice(east * size_px, (east + 1) * size_px),
        )

    temporary = temporary_path(folder)
    temporary.mkdir()
    for group, bands in native_groups(L2A_BANDS).items():
        size_m = int(group[1:])
        for band, values in zip(bands, pixels[group], strict=True):
            write_raster(
                temporary / f"{folder.name}_{band}.tif",
                values[window(PATCH_SIDE_M // size_m)][None],
                (size_m, 0, x, 0, -size_m, y),
                tile.epsg,
                description="simulated, never measured",
            )
    product_time = scene.stamp(of_clock=True)
    day, clock = product_time.split("T")
    metadata = {
        "labels": labels_of(land.cover[window(PATCH_PX)]),
        "coordinates": {"ulx": x, "uly": y, "lrx": x + PATCH_SIDE_M, "lry": y - PATCH_SIDE_M},
        "projection": wkt_of(tile.epsg),
        "tile_source": f"SIM_MSIL1C_{scene.stamp()}_N0205_R000_T{tile.name}_{product_time}.SAFE",
        "acquisition_date": f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}:{clock[4:]}",
    }
    path = temporary / f"{folder.name}_labels_metadata.json"
    path.write_text(json.dumps(metadata), encoding="utf-8")
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # another part of the same job was faster; its files are the same
        shutil.rmtree(temporary)
