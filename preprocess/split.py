"""Splits by geography: a place on Earth comes in, its block and its split go out.

Random patches of one field end up on both sides of a random split, and overlapping scenes repeat
the same ground. So blocks of ground go to splits whole, and what lies near the border between two
splits is left out. Blocks are counted in degrees over the whole globe: they do not know tiles, UTM
zones or dates, hence neither can move ground from one split to another.
"""

from __future__ import annotations

import hashlib
from math import cos, floor, radians

import numpy as np
import numpy.typing as npt

from preprocess.product_config import SplitConfig

KM_PER_DEGREE = 111.195  # of latitude, on the sphere of 6371 km
HALF_PATCH_KM = 0.6

Degrees = npt.NDArray[np.float64]


def block_of(longitude: float, latitude: float, block_km: float) -> str:
    """Return the name of the block that holds a point, ``k24r152c-479``.

    Rows have equal heights; every row is cut into columns about as wide as they are high.
    """
    # counted from the equator and Greenwich, not from any tile's corner
    height = block_km / KM_PER_DEGREE
    row = floor(latitude / height)
    # the middle of the row, so that all of it has one width; at the poles a row is one block
    width = height / max(cos(radians((row + 0.5) * height)), 1e-6)
    return f"k{block_km:g}r{row}c{floor(longitude / width)}"


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
    for east in (-stretch, 0.0, stretch):
        for north in (-reach, 0.0, reach):
            around = block_of(longitude + east, latitude + north, config.block_km)
            if split_of(around, config) != split:
                return block, ""
    return block, split
