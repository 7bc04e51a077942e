"""The 1,200 m grid of an MGRS tile: a tile's corner comes in, squares and what lies in them go out.

Squares are counted from the upper left corner of the product's own UTM grid, as BigEarthNet does:
the corner of a tile never moves, so a square has the same name on every date. 1,200 m is a whole
number of 10, 20 and 60 m pixels; nothing is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.raster import to_degrees

PATCH_SIDE_M = 1200
SIDE = 91  # squares along a tile of 109.8 km; the last 600 m hold no whole one
SQUARE_M = 100_000  # side of the MGRS square that a tile is named after; the rest is overlap
CORNER_SLACK_M = 60  # corners of tiles lie on multiples of 60 m, those of squares do not

Flags = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float32]
Degrees = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The squares of one tile.

    Attributes:
        tile: MGRS name, ``10SFH``.
        epsg: of its UTM zone.
        x: easting of the upper left corner in metres.
        y: northing of the upper left corner in metres.
    """

    tile: str
    epsg: int
    x: float
    y: float

    def place(self, column: int, row: int) -> str:
        """Return the name of a square."""
        return place_name(self.tile, column, row)

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
        """Say of each square whether its centre is this tile's own ground, (SIDE, SIDE).

        Tiles overlap by 9.8 km, and across the border of UTM zones by more. Each point of the Earth
        has one MGRS square, so one tile owns it, and no field enters a corpus twice.
        """
        x, y = self.centres()
        # the tile begins up to 40 m outside its MGRS square, whose sides are whole 100 km
        west, north = (round(edge / SQUARE_M) * SQUARE_M for edge in (self.x, self.y))
        in_square = (x >= west) & (x < west + SQUARE_M) & (y <= north) & (y > north - SQUARE_M)
        longitude, _ = self.degrees()
        begin, end = zone_bounds(self.tile)
        return np.asarray(in_square & (longitude >= begin) & (longitude < end))


def place_name(tile: str, column: int, row: int) -> str:
    """Return the name of a square of ground, the same on every date: ``10SFH_07_90``."""
    return f"{tile}_{column:02d}_{row:02d}"


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
    """Say whether a point can be the upper left corner of a tile: just outside its MGRS square."""
    return all(abs(edge - round(edge / SQUARE_M) * SQUARE_M) < CORNER_SLACK_M for edge in (x, y))


def window_of(column: int, row: int, resolution_m: int) -> tuple[int, int, int, int]:
    """Return column, row, width and height in pixels of a square."""
    size_px = PATCH_SIDE_M // resolution_m
    return column * size_px, row * size_px, size_px, size_px


def shares_of(where: Flags) -> Shares:
    """Return the share of true pixels in each square, (SIDE columns, SIDE rows).

    Args:
        where: (height, width) over a whole tile, of any pixel size that divides 1,200 m; rows go
            south, columns east.
    """
    size_px = where.shape[0] * 2 // (2 * SIDE + 1)  # a tile is 91.5 squares wide
    whole = where[: SIDE * size_px, : SIDE * size_px]
    blocks = whole.reshape(SIDE, size_px, SIDE, size_px)
    # (rows, columns) becomes (columns, rows), the order in which squares are named
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32).T)


def in_boxes(longitude: Degrees, latitude: Degrees, boxes: list[list[float]]) -> Flags:
    """Say of each point whether it lies in any box of west, south, east, north."""
    inside = np.zeros(longitude.shape, bool)
    for west, south, east, north in boxes:
        # east and north are the next box's own, so that boxes side by side share no patch
        inside |= (
            (longitude >= west) & (longitude < east) & (latitude >= south) & (latitude < north)
        )
    return inside
