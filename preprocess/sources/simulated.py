"""The source ``simulated``: patches synthesised from a seed, written and read as BigEarthNet v1.

A class is an arrangement of two covers, green and bare; everything else has the same distribution
in all classes. Every output states that it is simulated, from file names to shards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from preprocess.bands import L2A_BANDS, native_groups
from preprocess.config import SourceConfig, require
from preprocess.progress import progress_of
from preprocess.raster import session, wkt_of, write_raster
from preprocess.shards.atomic_io import is_abandoned, temporary_path, write_json
from preprocess.shards.format import SATURATED, PatchRef
from preprocess.sources.bigearthnet import V1_TREE, V1Tree
from preprocess.tiling import PATCH_SIDE_M

MARKER = "SIMULATED.json"
NOTICE = "These patches were synthesised by a program. They show no place on Earth."
_VERSION = 2  # changes whenever the pixels of a seed change

PATCH_PX = 120
SIDE_PATCHES = 2
SIDE_PX = SIDE_PATCHES * PATCH_PX
PATCHES_PER_ACQUISITION = SIDE_PATCHES**2
BLOCKS_PER_SIDE = 30  # regions along a tile; every third patch stays empty to separate them
SEASONS = ("summer", "winter")
YEARS = 8
# Regions are assigned to splits in turn; with four tiles and five turns, each tile has all splits.
SPLITS = ("train", "train", "train", "validation", "test")

# Reflectances x 10000: round numbers as typical of L2A products, not measured.
# B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12
ENDMEMBERS = {
    "crop": (180, 240, 600, 280, 1050, 3300, 4300, 4500, 4700, 4750, 2000, 850),
    "soil": (550, 760, 1080, 1400, 1650, 1800, 1950, 2100, 2250, 2300, 2950, 2500),
    "meadow": (160, 210, 430, 230, 800, 2500, 3300, 3450, 3600, 3650, 1600, 700),
    "straw": (520, 720, 1100, 1450, 1900, 2300, 2550, 2700, 2900, 2950, 3700, 2600),
}
COVERS = (("crop", "soil"), ("meadow", "straw"))  # green and bare cover, by season
# Standard deviation of each band's noise, and the effect of haze, in the same unit and order.
_NOISE = np.array((18, 15, 15, 16, 20, 22, 25, 26, 26, 45, 22, 22), np.float32)[:, None, None]
_HAZE = np.array((160, 120, 70, 50, 35, 25, 18, 15, 12, 10, 3, 1), np.float32)[:, None, None]
# Ranges of the share of green cover on a date and of pixels on an edge, the same in all classes, so
# that no mean, standard deviation or amount of edges reveals the class.
SHARES, EDGES = (0.38, 0.62), (0.12, 0.17)

# By class, the wavelength in pixels at which every pixel would be on an edge; the number of edges
# decreases with the wavelength.
_WAVES = {
    "Vineyards": 2.63,
    "Permanently irrigated land": 2.63,
    "Complex cultivation patterns": 4.1,
    "Water courses": 3.84,
    "Peatbogs": 2.8,
}
CLASSES = tuple(_WAVES)

Float = npt.NDArray[np.float32]
Field = npt.NDArray[np.float64]
Pixels = dict[str, npt.NDArray[np.uint16]]  # by native band group, (bands, side, side)
Place = tuple[int, int]  # column and row within a region
_PLACES: list[Place] = [(c, r) for r in range(SIDE_PATCHES) for c in range(SIDE_PATCHES)]


class Tile(NamedTuple):
    """A tile of Sentinel-2's grid: MGRS name, EPSG code, upper left corner in metres.

    ``stamps``: month, day and time in summer and winter, as in names.
    """

    name: str
    epsg: int
    x: int
    y: int
    stamps: tuple[str, str]


TILES = (
    Tile("29SND", 32629, 499980, 4400040, ("0718T112119", "1221T112501")),
    Tile("29UPU", 32629, 600000, 5900040, ("0617T113321", "0112T113429")),
    Tile("33UUP", 32633, 300000, 5400000, ("0613T101031", "0215T101131")),
    Tile("35VPK", 32635, 600000, 7000020, ("0724T93020", "0304T94161")),
)
# five digits, as in the real archive: identifiers that no longer match these clock times
_CLOCK = {"93020": "093020", "94161": "094156"}
NUM_REGIONS = len(TILES) * BLOCKS_PER_SIDE**2
MAX_PATCHES = NUM_REGIONS * PATCHES_PER_ACQUISITION * len(SEASONS) * YEARS


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
class Simulated(V1Tree):
    """The source ``simulated``."""

    config: SimulatedConfig
    simulated = True

    def discover(self) -> Iterator[PatchRef]:
        """Write the tree unless it exists, then yield its patch folders."""
        root = Path(self.config.root)
        write_tree(root, self.config.num_patches, self.config.seed)
        planned = _planned(self.config.num_patches)
        refs = [PatchRef(name, name, shown.split) for shown, places in planned for name in places]
        yield from sorted(refs, key=lambda ref: ref.id)


class Acquisition(NamedTuple):
    """One region on one date: region number, index into ``SEASONS``, years after 2017."""

    region: int
    season: int
    year: int

    @property
    def tile(self) -> Tile:
        """The tile that contains the region."""
        return TILES[self.region % len(TILES)]

    @property
    def split(self) -> str:
        """The split of the region's ground, the same on all dates."""
        return SPLITS[self.region % len(SPLITS)]

    @property
    def corner(self) -> tuple[int, int]:
        """Column and row in the tile of the region's upper left patch."""
        # a stride coprime to the number of blocks visits all and scatters consecutive regions
        block = self.region // len(TILES) * 173 % BLOCKS_PER_SIDE**2
        row, column = divmod(block, BLOCKS_PER_SIDE)
        return column * (SIDE_PATCHES + 1), row * (SIDE_PATCHES + 1)

    def stamp(self) -> str:
        """Return date and time as in names, such as ``20170613T101031``."""
        return f"{2017 + self.year}{self.tile.stamps[self.season]}"


def acquisition_of(number: int) -> Acquisition:
    """Return an acquisition by number: seasons vary fastest, then regions, then years."""
    rest, season = divmod(number, len(SEASONS))
    year, region = divmod(rest, NUM_REGIONS)
    return Acquisition(region, season, year)


class Land(NamedTuple):
    """The properties independent of the date: the class of every place, and the order of greening.

    Pixels with ``order``, (SIDE_PX, SIDE_PX) in [0, 1], below the green share of a date are green.
    """

    class_of: dict[Place, str]
    order: Float


def make_land(seed: int, region: int) -> Land:
    """Return the land of a region, which depends only on seed and region."""
    order = np.empty((SIDE_PX, SIDE_PX), np.float32)
    ranks = np.linspace(0, 1, PATCH_PX**2, dtype=np.float32)
    class_of = {}
    for number, place in enumerate(_PLACES):
        # consecutive classes, with another first one in every round of splits
        turn = region + region // len(SPLITS) + number
        class_of[place] = CLASSES[turn % len(CLASSES)]
        random = np.random.default_rng([seed, region, number])
        wave = _WAVES[class_of[place]] / random.uniform(*EDGES)
        field = _arrangement(class_of[place], random, wave)
        order[_window(place, PATCH_PX)].flat[np.argsort(field, axis=None, kind="stable")] = ranks
    return Land(class_of, order)


def observe(seed: int, acquisition: Acquisition, land: Land) -> Pixels:
    """Return the pixels of an acquisition."""
    random = np.random.default_rng([seed, *acquisition, 1])
    covers = np.array([ENDMEMBERS[name] for name in COVERS[acquisition.season]], np.float32)
    # light of the day, calibration of the bands, and a little of each cover in the other
    light = random.uniform(0.8, 1.2) * random.uniform(0.98, 1.02, len(L2A_BANDS))
    mixed = random.uniform(0, 0.2)
    green = np.empty_like(land.order)
    for place in _PLACES:
        window = _window(place, PATCH_PX)
        is_green = land.order[window] < random.uniform(*SHARES)
        green[window] = np.where(is_green, 1 - mixed, mixed)
    texture = 1 + random.uniform(0.03, 0.06) * random.standard_normal(green.shape, np.float32)
    haze = _HAZE * np.float32(random.gamma(2.0, 0.15))
    first, second = (covers * light.astype(np.float32))[:, :, None, None]
    pixels = {}
    for name, bands in native_groups(L2A_BANDS).items():
        columns = [L2A_BANDS.index(band) for band in bands]
        share, whole = (_mean_of_blocks(f, int(name[1:]) // 10) for f in (green * texture, texture))
        values = first[columns] * share + second[columns] * (whole - share) + haze[columns]
        values += random.standard_normal(values.shape, np.float32) * _NOISE[columns]
        # never the values of nodata or saturation
        pixels[name] = np.clip(np.rint(values), 1, SATURATED - 1).astype(np.uint16)
    return pixels


_Y, _X = np.mgrid[:PATCH_PX, :PATCH_PX].astype(np.float64)


def _arrangement(name: str, random: np.random.Generator, wave: float) -> Field:
    """Return the arrangement of a class in a place; the lowest values turn green first."""
    if name == "Peatbogs":  # a labyrinth
        return _waves(random, wave, spread=0.12)
    if name == "Permanently irrigated land":  # rings
        x, y = random.uniform(0.2, 0.8, 2) * PATCH_PX
        bent = random.uniform(0, 0.15) * _waves(random, PATCH_PX / 2)
        return _cosine(np.hypot(_X - x, _Y - y) / wave + bent + random.random())
    # two perpendicular coordinates in wavelengths, in any direction, slightly bent
    bend = 0 if name == "Water courses" else 0.15
    bent = random.uniform(0, bend) * _waves(random, PATCH_PX / 2)
    angle = random.uniform(0, np.pi)
    x, y = (_X - random.uniform(0, PATCH_PX)) / wave, (_Y - random.uniform(0, PATCH_PX)) / wave
    cosine, sine = np.cos(angle), np.sin(angle)
    along, across = x * cosine + y * sine + bent, y * cosine - x * sine + bent
    if name == "Water courses":  # meanders
        return _cosine(along + 0.5 * _cosine(across / random.uniform(1.6, 2.2)))
    strips = _cosine(along)
    return strips * _cosine(across) if name == "Complex cultivation patterns" else strips


def _cosine(turns: Field) -> Field:
    return np.asarray(np.cos(2 * np.pi * turns))


def _waves(random: np.random.Generator, wave: float, spread: float = 0.35) -> Field:
    """Return noise of about one wavelength in all directions, with unit standard deviation."""
    frequency = np.fft.fftfreq(PATCH_PX)
    radius = np.hypot(frequency[:, None], frequency) * wave
    band = np.exp(-0.5 * ((radius - 1) / spread) ** 2)
    field = np.fft.ifft2(np.fft.fft2(random.standard_normal((PATCH_PX, PATCH_PX))) * band).real
    return np.asarray(field / field.std())


def _mean_of_blocks(field: Float, side: int) -> Float:
    """Return means over blocks of side x side pixels, (SIDE_PX / side, SIDE_PX / side)."""
    total = sum(field[i::side, j::side] for i in range(side) for j in range(side))
    return np.asarray(total / np.float32(side * side))


def _window(place: Place, size_px: int) -> tuple[slice, slice]:
    """Return the rows and columns of a place on a grid with ``size_px`` pixels per patch."""
    column, row = (number * size_px for number in place)
    return slice(row, row + size_px), slice(column, column + size_px)


def write_tree(root: Path, num_patches: int, seed: int) -> None:
    """Write a tree of simulated patches; complete an unfinished one, reject a different one.

    Patch i is the same for every ``num_patches`` above i. Ground has the same split on all dates.
    """
    if num_patches > MAX_PATCHES:
        raise ValueError(
            f"source.num_patches is {num_patches}; there is ground for {MAX_PATCHES} patches"
        )
    # kept in the marker: when a run resumes, the same settings must give the same pixels
    settings = {"notice": NOTICE, "version": _VERSION, "num_patches": num_patches, "seed": seed}
    if _is_complete(root, settings):
        return
    write_json(root / MARKER, {**settings, "complete": False})
    tree = root / V1_TREE
    tree.mkdir(exist_ok=True)
    for leftover in filter(is_abandoned, tree.glob(".*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)  # another part may be removing it too
    land_of = lru_cache(maxsize=1)(make_land)  # the two seasons of a region are consecutive
    with session(), progress_of(num_patches, "simulate") as advance:
        for acquisition, places in _planned(num_patches):
            missing = [name for name in places if not (tree / name).is_dir()]
            if missing:
                land = land_of(seed, acquisition.region)
                pixels = observe(seed, acquisition, land)
                for name in missing:
                    _write_patch(tree / name, acquisition, places[name], land, pixels)
            advance(len(places))
    os.sync()  # the marker must not outlive the files it describes
    write_json(root / MARKER, {**settings, "complete": True})


def _planned(num_patches: int) -> Iterator[tuple[Acquisition, dict[str, Place]]]:
    """Yield each acquisition with the names and places of its patches."""
    for number in range(-(-num_patches // PATCHES_PER_ACQUISITION)):
        acquisition = acquisition_of(number)
        column, row = acquisition.corner
        wanted = _PLACES[: num_patches - number * PATCHES_PER_ACQUISITION]
        name = f"SIM_MSIL2A_{acquisition.stamp()}"
        yield acquisition, {f"{name}_{column + c}_{row + r}": (c, r) for c, r in wanted}


def _is_complete(root: Path, settings: dict[str, Any]) -> bool:
    """Return whether the root contains all of this simulation; ``ValueError`` for other content."""
    marker = root / MARKER
    if not marker.is_file():
        # a hidden file may be the marker that another part is about to put in place
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


def _write_patch(
    folder: Path, acquisition: Acquisition, place: Place, land: Land, pixels: Pixels
) -> None:
    """Write one patch folder atomically."""
    tile = acquisition.tile
    column, row = (corner + n for corner, n in zip(acquisition.corner, place, strict=True))
    x, y = tile.x + column * PATCH_SIDE_M, tile.y - row * PATCH_SIDE_M
    temporary = temporary_path(folder)
    temporary.mkdir()
    for group, bands in native_groups(L2A_BANDS).items():
        size_m = int(group[1:])
        for band, values in zip(bands, pixels[group], strict=True):
            write_raster(
                temporary / f"{folder.name}_{band}.tif",
                values[_window(place, PATCH_SIDE_M // size_m)][None],
                (size_m, 0, x, 0, -size_m, y),
                tile.epsg,
                description="simulated, never measured",
            )
    day, spelled = acquisition.stamp().split("T")
    clock = f"{day}T{_CLOCK.get(spelled, spelled)}"
    metadata = {
        "labels": [land.class_of[place]],
        "coordinates": {"ulx": x, "uly": y, "lrx": x + PATCH_SIDE_M, "lry": y - PATCH_SIDE_M},
        "projection": wkt_of(tile.epsg),
        "tile_source": f"SIM_MSIL1C_{acquisition.stamp()}_N0205_R000_T{tile.name}_{clock}.SAFE",
        "acquisition_date": str(datetime.strptime(clock, "%Y%m%dT%H%M%S")),
    }
    path = temporary / f"{folder.name}_labels_metadata.json"
    path.write_text(json.dumps(metadata), encoding="utf-8")
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # another part of the same job was faster; its files are identical
        shutil.rmtree(temporary)
