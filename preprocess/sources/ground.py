"""What of a tile is wanted, on any date: settings and a tile come in, flags and blocks go out.

All arrays are (SIDE columns, SIDE rows) over the squares of a tile.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.grid import PATCH_SIDE_M, SIDE, Flags, TileGrid, in_boxes
from preprocess.product_config import ProductsConfig
from preprocess.raster import to_degrees
from preprocess.split import block_and_split

OUTSIDE = "outside the boxes of interest"
FOREIGN = "ground that another tile owns"
EXCLUDED_AREA = "in an excluded area"
EXCLUDED_LIST = "on an exclusion list"
NEAR_BORDER = "near ground of another split"

_UNDECIDED = ("", "")


@dataclass(frozen=True, slots=True)
class Ground:
    """The squares of one tile.

    Attributes:
        unwanted: squares that no product may fill, by reason; the first reason counts.
        blocks: block and split of wanted squares; two empty names without blocks.
    """

    unwanted: dict[str, Flags]
    blocks: dict[tuple[int, int], tuple[str, str]]

    def block(self, column: int, row: int) -> tuple[str, str]:
        """Return block and split of a square."""
        return self.blocks.get((column, row), _UNDECIDED)


def ground_of(grid: TileGrid, config: ProductsConfig, excluded: Set[str]) -> Ground:
    """Judge the squares of a tile.

    Args:
        grid: of the tile.
        config: boxes, owners and blocks.
        excluded: whole names of places to leave out.
    """
    select = config.select
    longitude, latitude = grid.degrees()
    everywhere = np.ones((SIDE, SIDE), bool)
    unwanted = {
        OUTSIDE: ~in_boxes(longitude, latitude, select.boxes) if select.boxes else ~everywhere,
        FOREIGN: ~grid.owned() if select.one_owner else ~everywhere,
        EXCLUDED_AREA: _touching(grid, select.exclude_boxes),
        EXCLUDED_LIST: _listed(grid, excluded),
    }
    if not config.split.block_km:
        return Ground(unwanted, {})
    # in double precision one by one, since a block's border must fall alike for every tile; only
    # for ground that nothing else speaks against
    wanted = np.argwhere(~np.any(list(unwanted.values()), axis=0)).tolist()
    blocks = {
        (column, row): block_and_split(
            float(longitude[column, row]), float(latitude[column, row]), config.split
        )
        for column, row in wanted
    }
    unwanted[NEAR_BORDER] = ~everywhere
    for square, (_, split) in blocks.items():
        unwanted[NEAR_BORDER][square] = not split
    return Ground(unwanted, blocks)


def _touching(grid: TileGrid, boxes: list[list[float]]) -> Flags:
    """Say of each square whether any of its ground lies in a box.

    Compared by the upright boxes in degrees around a square and the area, which may be a little
    more than the ground itself: what must stay out stays out.
    """
    touching = np.zeros((SIDE, SIDE), bool)
    if not boxes:
        return touching
    # all four: the sides of a UTM square run askew to meridians
    corners = _corners_in_degrees(grid)
    west, south = corners.min(axis=1)
    east, north = corners.max(axis=1)
    for box in boxes:
        touching |= (east > box[0]) & (west < box[2]) & (north > box[1]) & (south < box[3])
    return touching


def _corners_in_degrees(grid: TileGrid) -> npt.NDArray[np.float64]:
    """Return longitudes and latitudes of the corners of all squares, (2, 4, SIDE, SIDE)."""
    x, y = grid.centres()
    half = PATCH_SIDE_M / 2
    corners = [
        to_degrees(grid.epsg, x + east, y + north)
        for east in (-half, half)
        for north in (-half, half)
    ]
    return np.stack(corners, axis=1)


def _listed(grid: TileGrid, excluded: Set[str]) -> Flags:
    listed = np.zeros((SIDE, SIDE), bool)
    # each place is asked for whole: a search for parts of names would drop 1_25 with 1_2
    for column, row in np.ndindex(SIDE, SIDE) if excluded else ():
        listed[column, row] = grid.place(column, row) in excluded
    return listed
