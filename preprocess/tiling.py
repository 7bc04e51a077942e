"""The 1,200 m grid of MGRS tiles, splits by blocks of ground, and areas to exclude.

As in BigEarthNet, squares are counted from the upper left corner of the product's own UTM grid,
which never moves: a square has the same name on every date, and nothing is resampled.
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

PATCH_SIDE_M = 1200  # a multiple of 10, 20 and 60 m pixels
TILE_M = 109_800
SIDE = 91  # squares along a tile; the last 600 m are too narrow for another
SQUARE_M = 100_000  # side of the MGRS square that a tile is named after; the rest is overlap
CORNER_SLACK_M = 60  # tile corners are on multiples of 60 m, corners of MGRS squares are not

Flags = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float32]
Degrees = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Grid of one tile's squares in UTM."""

    tile: str  # MGRS name, such as 10SFH
    epsg: int  # code of its UTM zone
    x: float  # easting of the upper left corner in metres
    y: float  # northing of the upper left corner in metres

    def centres(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return eastings and northings of all centres, each (SIDE columns, SIDE rows)."""
        # columns first: the order in which squares are named, unlike images
        steps = (np.arange(SIDE) + 0.5) * PATCH_SIDE_M
        x, y = np.meshgrid(self.x + steps, self.y - steps, indexing="ij")
        return x, y

    def degrees(self) -> tuple[Degrees, Degrees]:
        """Return longitudes and latitudes of all centres, each (SIDE columns, SIDE rows)."""
        return to_degrees(self.epsg, *self.centres())

    def owned(self) -> Flags:
        """Return whether this tile owns the centre of each square, (SIDE, SIDE).

        Tiles overlap by 9.8 km, and by more across the border of UTM zones. Each point on Earth is
        in one MGRS square, so one tile owns it, and no field enters a dataset twice.
        """
        x, y = self.centres()
        # the tile begins up to 40 m outside its MGRS square, whose edges are multiples of 100 km
        west, north = (round(edge / SQUARE_M) * SQUARE_M for edge in (self.x, self.y))
        in_square = (x >= west) & (x < west + SQUARE_M) & (y <= north) & (y > north - SQUARE_M)
        longitude, _ = self.degrees()
        begin, end = zone_bounds(self.tile)
        return np.asarray(in_square & (longitude >= begin) & (longitude < end))


def square_name(of: str, column: int, row: int) -> str:
    """Return the name of a square of a product or tile: ``10SFH_07_90`` on every date."""
    return f"{of}_{column:02d}_{row:02d}"


def listed_squares(of: str, names: Set[str]) -> Flags:
    """Return whether ``names`` contains each square of a tile or product, (columns, rows)."""
    # compare complete names: a substring search would drop 1_25 with 1_2
    squares = np.ndindex(SIDE, SIDE)
    return np.array([square_name(of, *at) in names for at in squares]).reshape(SIDE, SIDE)


def zone_bounds(tile: str) -> tuple[float, float]:
    """Return the western and eastern longitude of a tile's UTM zone.

    Zones are six degrees wide, except in Norway and Svalbard (MGRS bands V and X).
    """
    zone, band = int(tile[:2]), tile[2]
    unusual = {
        "31V": (0, 3), "32V": (3, 12),
        "31X": (0, 9), "33X": (9, 21), "35X": (21, 33), "37X": (33, 42),
    }  # fmt: skip
    begin = -180 + 6 * (zone - 1)
    return unusual.get(f"{zone:02d}{band}", (begin, begin + 6))


def is_corner_of_tile(x: float, y: float) -> bool:
    """Return whether a point can be the corner of a tile, just outside an MGRS square."""
    return all(abs(edge - round(edge / SQUARE_M) * SQUARE_M) < CORNER_SLACK_M for edge in (x, y))


def window_of(column: int, row: int, resolution_m: int) -> tuple[int, int, int, int]:
    """Return column, row, width and height in pixels of a square."""
    size_px = PATCH_SIDE_M // resolution_m
    return column * size_px, row * size_px, size_px, size_px


def shares_of(where: Flags) -> Shares:
    """Return the share of true pixels in each square, (SIDE columns, SIDE rows).

    ``where`` is (height, width) over an entire tile, of any pixel size that divides 1,200 m.
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
        # east and north edges are excluded, so that adjacent boxes share no patch
        inside |= (
            (longitude >= west) & (longitude < east) & (latitude >= south) & (latitude < north)
        )
    return inside


KM_PER_DEGREE = 111.195  # of latitude, on the sphere of 6371 km
HALF_PATCH_KM = 0.6


def block_of(longitude: float, latitude: float, block_km: float) -> str:
    """Return the name of the block that contains a point, such as ``k24r152c-479``.

    Rows have equal heights; each row is divided into columns about as wide as they are high.
    """
    # counted from the equator and Greenwich, not from a tile's corner
    height = block_km / KM_PER_DEGREE
    row = floor(latitude / height)
    # cosine at the middle of the row, for one width per row; at the poles a row is one block
    width = height / max(cos(radians((row + 0.5) * height)), 1e-6)
    # 180.01 degrees east equals 179.99 degrees west
    east = longitude if -180 <= longitude < 180 else (longitude + 180) % 360 - 180
    return f"k{block_km:g}r{row}c{floor(east / width)}"


def split_of(block: str, config: SplitConfig) -> str:
    """Return train, validation or test; depends only on block, shares and seed."""
    # a hash, not a random generator: the order of blocks cannot change the result
    digest = hashlib.sha256(f"{config.seed}:{block}".encode()).digest()
    draw = int.from_bytes(digest[:8]) / 2**64
    if draw < config.test:
        return "test"
    return "validation" if draw < config.test + config.validation else "train"


def block_and_split(longitude: float, latitude: float, config: SplitConfig) -> tuple[str, str]:
    """Return block and split of a patch by its centre; the split is empty near another split.

    A patch is kept only if all ground within ``buffer_km`` of it belongs to its own split. Patches
    of two splits are therefore at least ``2 * buffer_km`` apart.
    """
    block = block_of(longitude, latitude, config.block_km)
    split = split_of(block, config)
    # blocks are wider than this ring of eight points, so none can fit between them unnoticed
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
    """Selection, blocks and splits of one tile's squares, the same for all its products."""

    # excluded squares by reason; the first reason counts
    unwanted: dict[str, Flags]
    blocks: dict[tuple[int, int], tuple[str, str]]  # block and split of wanted squares, if any


def ground_of(grid: TileGrid, config: ProductsConfig, excluded: Set[str]) -> Ground:
    """Return the excluded squares of a tile, and the blocks and splits of the others.

    ``excluded`` contains complete names of squares to exclude.
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
    # one by one in double precision, since block borders must be identical for every tile; only
    # for squares not excluded for another reason
    wanted = np.argwhere(~np.any(list(unwanted.values()), axis=0)).tolist()
    blocks = {}
    unwanted[NEAR_BORDER] = ~everywhere
    for column, row in wanted:
        place = float(longitude[column, row]), float(latitude[column, row])
        blocks[column, row] = block_and_split(*place, config.split)
        unwanted[NEAR_BORDER][column, row] = not blocks[column, row][1]
    return Ground(unwanted, blocks)


def _touching(grid: TileGrid, boxes: list[list[float]]) -> Flags:
    """Return whether any part of each square is inside a box.

    Compares the square's bounding box in degrees with the area. The bounding box is slightly larger
    than the square, so excluded ground never slips through.
    """
    touching = np.zeros((SIDE, SIDE), bool)
    if not boxes:
        return touching
    x, y = grid.centres()
    half = (-PATCH_SIDE_M / 2, PATCH_SIDE_M / 2)
    # all four corners, since UTM squares are rotated against meridians; (2, 4, SIDE, SIDE)
    ends = itertools.product(half, half)
    corners = np.stack([to_degrees(grid.epsg, x + east, y + north) for east, north in ends], axis=1)
    # unwrapped relative to the first square: tiles across 180 degrees run from 179 to 181
    first = corners[0, 0, 0, 0]
    corners[0] = first + (corners[0] - first + 180) % 360 - 180
    west, south = corners.min(axis=1)
    east, north = corners.max(axis=1)
    for box in boxes:
        for turn in (-360, 0, 360):
            beside = (east + turn > box[0]) & (west + turn < box[2])
            touching |= beside & (north > box[1]) & (south < box[3])
    return touching
