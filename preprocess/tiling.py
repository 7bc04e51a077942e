"""The 1,200 m grid of MGRS tiles, splits by blocks of ground, and areas to leave out.

As BigEarthNet does, squares are counted from the upper left corner of the product's own UTM grid:
it never moves, so that a square has the same name on every date; nothing is resampled.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Set
from dataclasses import dataclass
from math import cos, floor, radians

import numpy as np
import numpy.typing as npt

from preprocess.config import ProductsConfig, SplitConfig
from preprocess.raster import to_degrees

PATCH_SIDE_M = 1200  # a whole number of 10, 20 and 60 m pixels
TILE_M = 109_800
SIDE = 91  # squares along a tile; the last 600 m hold no whole one
SQUARE_M = 100_000  # side of the MGRS square that a tile is named after; the rest is overlap
CORNER_SLACK_M = 60  # corners of tiles lie on multiples of 60 m, those of squares do not

Flags = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float32]
Degrees = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Where the squares of one tile lie: its grid in UTM."""

    tile: str  # MGRS name, 10SFH
    epsg: int  # of its UTM zone
    x: float  # easting of the upper left corner in metres
    y: float  # northing of the upper left corner in metres

    def centres(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return eastings and northings of all centres, each (SIDE columns, SIDE rows)."""
        # (SIDE columns, SIDE rows): the order in which squares are named, not that of images
        steps = (np.arange(SIDE) + 0.5) * PATCH_SIDE_M
        x, y = np.meshgrid(self.x + steps, self.y - steps, indexing="ij")
        return x, y

    def degrees(self) -> tuple[Degrees, Degrees]:
        """Return longitudes and latitudes of all centres, each (SIDE columns, SIDE rows)."""
        return to_degrees(self.epsg, *self.centres())

    def owned(self) -> Flags:
        """Return whether the centre of each square is this tile's own ground, (SIDE, SIDE).

        Tiles overlap by 9.8 km, and across the border of UTM zones by more. Each point of the Earth
        has one MGRS square, so one tile owns it, and no field enters a dataset twice.
        """
        x, y = self.centres()
        # the tile begins up to 40 m outside its MGRS square, whose sides are whole 100 km
        west, north = (round(edge / SQUARE_M) * SQUARE_M for edge in (self.x, self.y))
        in_square = (x >= west) & (x < west + SQUARE_M) & (y <= north) & (y > north - SQUARE_M)
        longitude, _ = self.degrees()
        begin, end = zone_bounds(self.tile)
        return np.asarray(in_square & (longitude >= begin) & (longitude < end))


def square_name(of: str, column: int, row: int) -> str:
    """Return the name of a square of a product, or of a tile: ``10SFH_07_90`` on every date."""
    return f"{of}_{column:02d}_{row:02d}"


def listed_squares(of: str, names: Set[str]) -> Flags:
    """Return which squares of a tile or product a list names, (SIDE columns, SIDE rows)."""
    listed = np.zeros((SIDE, SIDE), bool)
    # each name is compared whole: a search for parts of names would drop 1_25 with 1_2
    for column, row in np.ndindex(SIDE, SIDE) if names else ():
        listed[column, row] = square_name(of, column, row) in names
    return listed


def zone_bounds(tile: str) -> tuple[float, float]:
    """Return the longitudes between which ground belongs to the zone of a tile.

    Zones are six degrees wide, but for Norway and Svalbard (MGRS bands V and X).
    """
    zone, band = int(tile[:2]), tile[2]
    unusual = {
        "31V": (0, 3), "32V": (3, 12),
        "31X": (0, 9), "33X": (9, 21), "35X": (21, 33), "37X": (33, 42),
    }  # fmt: skip
    begin = -180 + 6 * (zone - 1)
    return unusual.get(f"{zone:02d}{band}", (begin, begin + 6))


def is_corner_of_tile(x: float, y: float) -> bool:
    """Return whether a point can be the corner of a tile: just outside its MGRS square."""
    return all(abs(edge - round(edge / SQUARE_M) * SQUARE_M) < CORNER_SLACK_M for edge in (x, y))


def window_of(column: int, row: int, resolution_m: int) -> tuple[int, int, int, int]:
    """Return column, row, width and height in pixels of a square."""
    size_px = PATCH_SIDE_M // resolution_m
    return column * size_px, row * size_px, size_px, size_px


def shares_of(where: Flags) -> Shares:
    """Return the share of true pixels in each square, (SIDE columns, SIDE rows).

    ``where`` is (height, width) over a whole tile, of any pixel size that divides 1,200 m.
    """
    size_px = where.shape[0] * 2 // (2 * SIDE + 1)  # a tile is 91.5 squares wide
    whole = where[: SIDE * size_px, : SIDE * size_px]
    blocks = whole.reshape(SIDE, size_px, SIDE, size_px)
    # (rows, columns) becomes (columns, rows), the order in which squares are named
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32).T)


def in_boxes(longitude: Degrees, latitude: Degrees, boxes: list[list[float]]) -> Flags:
    """Return whether each point lies in any box (west, south, east, north)."""
    inside = np.zeros(longitude.shape, bool)
    for west, south, east, north in boxes:
        # east and north are the next box's own, so that boxes side by side share no patch
        inside |= (
            (longitude >= west) & (longitude < east) & (latitude >= south) & (latitude < north)
        )
    return inside


KM_PER_DEGREE = 111.195  # of latitude, on the sphere of 6371 km
HALF_PATCH_KM = 0.6


def block_of(longitude: float, latitude: float, block_km: float) -> str:
    """Return the name of the block that holds a point, ``k24r152c-479``.

    Rows have equal heights; every row is cut into columns about as wide as they are high.
    """
    # counted from the equator and Greenwich, not from any tile's corner
    height = block_km / KM_PER_DEGREE
    row = floor(latitude / height)
    # the middle of the row, so that all of it has one width; at the poles a row is one block
    width = height / max(cos(radians((row + 0.5) * height)), 1e-6)
    # 180.01 east of Greenwich is 179.99 west of it
    east = longitude if -180 <= longitude < 180 else (longitude + 180) % 360 - 180
    return f"k{block_km:g}r{row}c{floor(east / width)}"


def split_of(block: str, config: SplitConfig) -> str:
    """Return train, validation or test; it depends on nothing but block, shares and seed."""
    # a hash, not a generator: no order of blocks can change what one of them draws
    digest = hashlib.sha256(f"{config.seed}:{block}".encode()).digest()
    draw = int.from_bytes(digest[:8]) / 2**64
    if draw < config.test:
        return "test"
    return "validation" if draw < config.test + config.validation else "train"


def block_and_split(longitude: float, latitude: float, config: SplitConfig) -> tuple[str, str]:
    """Return block and split of a patch by its centre; no split means: too near to another one.

    A patch is kept only if all ground within ``buffer_km`` of it is of its own split. Patches of
    two splits are therefore at least twice that far from each other.
    """
    block = block_of(longitude, latitude, config.block_km)
    split = split_of(block, config)
    # blocks are wider than the ring, so none can reach in between the eight points unseen
    reach = (config.buffer_km + HALF_PATCH_KM) / KM_PER_DEGREE
    stretch = reach / cos(radians(latitude))  # degrees of longitude narrow towards the poles
    for east, north in itertools.product((-stretch, 0.0, stretch), (-reach, 0.0, reach)):
        around = block_of(longitude + east, latitude + north, config.block_km)
        if split_of(around, config) != split:
            return block, ""
    return block, split


OUTSIDE = "outside the boxes of interest"
FOREIGN = "ground that another tile owns"
EXCLUDED_AREA = "in an excluded area"
EXCLUDED_LIST = "on an exclusion list"
NEAR_BORDER = "near ground of another split"


@dataclass(frozen=True, slots=True)
class Ground:
    """What holds for the squares of one tile whatever the product."""

    # squares that no product may fill, by reason; the first reason counts
    unwanted: dict[str, Flags]
    blocks: dict[tuple[int, int], tuple[str, str]]  # block and split of wanted squares, if any

    def block(self, column: int, row: int) -> tuple[str, str]:
        """Return block and split of a square; two empty names without blocks."""
        return self.blocks.get((column, row), ("", ""))


def ground_of(grid: TileGrid, config: ProductsConfig, excluded: Set[str]) -> Ground:
    """Find which squares of a tile no product may fill, and their blocks and splits.

    ``excluded`` holds whole names of places to leave out.
    """
    select = config.select
    longitude, latitude = grid.degrees()
    everywhere = np.ones((SIDE, SIDE), bool)
    unwanted = {
        OUTSIDE: ~in_boxes(longitude, latitude, select.boxes) if select.boxes else ~everywhere,
        FOREIGN: ~grid.owned() if select.one_owner else ~everywhere,
        EXCLUDED_AREA: _touching(grid, select.exclude_boxes),
        EXCLUDED_LIST: listed_squares(grid.tile, excluded),
    }
    if not config.split.block_km:
        return Ground(unwanted, {})
    # in double precision one by one, since a block's border must fall alike for every tile; only
    # for ground that nothing else speaks against
    wanted = np.argwhere(~np.any(list(unwanted.values()), axis=0)).tolist()
    blocks = {}
    unwanted[NEAR_BORDER] = ~everywhere
    for column, row in wanted:
        place = float(longitude[column, row]), float(latitude[column, row])
        blocks[column, row] = block_and_split(*place, config.split)
        unwanted[NEAR_BORDER][column, row] = not blocks[column, row][1]
    return Ground(unwanted, blocks)


def _touching(grid: TileGrid, boxes: list[list[float]]) -> Flags:
    """Return whether any ground of each square lies in a box.

    Compared by the upright boxes in degrees around a square and the area, which may be a little
    more than the ground itself: what must stay out stays out.
    """
    touching = np.zeros((SIDE, SIDE), bool)
    if not boxes:
        return touching
    x, y = grid.centres()
    half = (-PATCH_SIDE_M / 2, PATCH_SIDE_M / 2)
    # all four: the sides of a UTM square run askew to meridians; (2, 4, SIDE, SIDE)
    ends = itertools.product(half, half)
    corners = np.stack([to_degrees(grid.epsg, x + east, y + north) for east, north in ends], axis=1)
    # counted on from the first square: those across 180 degrees begin at 179 and end at 181
    first = corners[0, 0, 0, 0]
    corners[0] = first + (corners[0] - first + 180) % 360 - 180
    west, south = corners.min(axis=1)
    east, north = corners.max(axis=1)
    for box in boxes:
        for turn in (-360, 0, 360):
            beside = (east + turn > box[0]) & (west + turn < box[2])
            touching |= beside & (north > box[1]) & (south < box[3])
    return touching
