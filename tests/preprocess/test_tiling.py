"""Ground: squares as BigEarthNet has them, each owned once; blocks whole in one split."""

import re
from math import cos, hypot, radians

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from preprocess.config import ProductsConfig, SelectConfig, SplitConfig
from preprocess.tiling import (
    EXCLUDED_AREA,
    KM_PER_DEGREE,
    SIDE,
    TileGrid,
    block_and_split,
    block_of,
    ground_of,
    is_corner_of_tile,
    shares_of,
    split_of,
    zone_bounds,
)


def test_corners_in_the_metadata_of_real_products_are_corners_of_tiles(real_data):
    files = list((real_data / "sentinel2_safe").rglob("MTD_TL.xml"))
    assert len(files) >= 6
    for path in files:
        text = path.read_text()
        x, y = (float(re.search(rf"<{key}>(\d+)</{key}>", text)[1]) for key in ("ULX", "ULY"))
        assert is_corner_of_tile(x, y)
        assert not is_corner_of_tile(x + 1200, y)


def test_squares_lie_where_bigearthnet_has_its_patches(real_data):
    grid = TileGrid("33UUP", 32633, 300000, 5400000)
    x, y = grid.centres()
    folders = list((real_data / "bigearthnet_v2" / "BigEarthNet-S2").glob("*T33UUP/*_*"))
    assert folders
    for folder in folders:
        column, row = map(int, folder.name.rsplit("_", 2)[1:])
        with rasterio.open(folder / f"{folder.name}_B02.tif") as dataset:
            centre = (dataset.transform.c + 600, dataset.transform.f - 600)
        assert (x[column, row], y[column, row]) == centre


def test_neighbouring_tiles_own_each_place_once():
    west = TileGrid("10SFH", 32610, 600000, 4200000)
    east = TileGrid("10SGH", 32610, 699960, 4200000)
    (wx, _), (ex, _) = west.centres(), east.centres()
    assert wx[west.owned()].max() < 700000 <= ex[east.owned()].min()
    assert west.owned().sum() == 83 * 83


def test_ground_beyond_the_border_of_a_zone_belongs_to_the_other():
    grid = TileGrid("10SGF", 32610, 699960, 4000020)
    longitude, _ = grid.degrees()
    assert (longitude[grid.owned()] < -120).all()
    assert (longitude > -120).any()
    assert zone_bounds("32VNM") == (3, 12)


@pytest.mark.parametrize("side", [5490, 1830, 183])
def test_shares_are_those_of_a_plain_loop(side):
    where = np.random.default_rng(0).random((side, side)) < 0.3
    size_px = side * 1200 // 109800
    shares = shares_of(where)
    assert shares.shape == (SIDE, SIDE)
    for column, row in ((0, 0), (90, 3), (17, 90)):
        square = where[
            row * size_px : (row + 1) * size_px, column * size_px : (column + 1) * size_px
        ]
        assert shares[column, row] == pytest.approx(square.mean())


def test_squares_across_180_degrees_touch_only_what_lies_there():
    # a tile of Fiji whose east lies beyond 180 degrees
    grid = TileGrid("60KYF", 32760, 799980, 8200000)
    longitude, _ = grid.degrees()
    assert longitude.max() > 179.9
    assert longitude.min() < -179.9
    select = SelectConfig(exclude_boxes=[[10, -90, 20, 90]], one_owner=False)
    config = ProductsConfig(select=select)
    assert not ground_of(grid, config, set()).unwanted[EXCLUDED_AREA].any()
    select.exclude_boxes = [[-180, -90, -179.5, 90]]
    touching = ground_of(grid, config, set()).unwanted[EXCLUDED_AREA]
    assert touching[longitude < -179.5].all()
    assert not touching[(longitude > 0) & (longitude < 179.98)].any()


CONFIG = SplitConfig(block_km=12, buffer_km=1.2, validation=0.3, test=0.3)
ANTIMERIDIAN = st.tuples(st.floats(179.9, 180.1), st.floats(-20, -15))
VALLEY = st.tuples(st.floats(-122.5, -119), st.floats(35, 40))


def apart_km(a, b):
    north = (a[1] - b[1]) * KM_PER_DEGREE
    return hypot(north, (a[0] - b[0]) * KM_PER_DEGREE * cos(radians(a[1])))


@given(VALLEY | ANTIMERIDIAN, st.floats(-0.08, 0.08), st.floats(-0.08, 0.08))
def test_kept_patches_of_two_splits_are_twice_the_buffer_apart(point, east, north):
    other = (point[0] + east, point[1] + north)
    (_, split), (_, other_split) = (block_and_split(*place, CONFIG) for place in (point, other))
    if split and other_split and split != other_split:
        # from edge to edge: half a patch on either side
        assert apart_km(point, other) - 1.2 >= 2 * 1.2 * 0.99


@given(VALLEY)
def test_a_kept_patch_has_the_split_of_its_block(point):
    block, split = block_and_split(*point, CONFIG)
    assert block == block_of(*point, CONFIG.block_km)
    assert split in ("", split_of(block, CONFIG))


def test_blocks_are_dealt_by_their_shares_and_anew_by_the_seed():
    blocks = [f"k12r{row}c{column}" for row in range(60) for column in range(60)]
    splits = [split_of(block, CONFIG) for block in blocks]
    for name, share in (("train", 0.4), ("validation", 0.3), ("test", 0.3)):
        assert abs(splits.count(name) / len(blocks) - share) < 0.03
    assert splits != [split_of(block, SplitConfig(block_km=12, seed=1)) for block in blocks]


@given(ANTIMERIDIAN)
def test_a_point_across_180_degrees_has_one_block_however_it_is_written(point):
    longitude, latitude = point
    assert block_of(longitude, latitude, 12) == block_of(longitude - 360, latitude, 12)
