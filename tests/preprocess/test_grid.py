"""The grid of tiles: squares where BigEarthNet has them, each piece of ground owned once."""

import re

import numpy as np
import pytest
import rasterio

from preprocess.config import ProductsConfig, SelectConfig
from preprocess.tiling import (
    EXCLUDED_AREA,
    SIDE,
    TileGrid,
    ground_of,
    is_corner_of_tile,
    shares_of,
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
