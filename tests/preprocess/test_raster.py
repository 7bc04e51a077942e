"""Opening rasters: pixels as rasterio reads them, and one clear error for each bad file."""

import logging

import numpy as np
import pytest
import rasterio
from make_data import write_geotiff

from preprocess.raster import read_raster, session, versions, write_raster
from preprocess.shards.patch import PatchError

PIXELS = np.arange(2 * 6 * 8, dtype=np.uint16).reshape(2, 6, 8)


def test_a_whole_raster_comes_with_its_grid(tmp_path):
    raster = read_raster(write_geotiff(tmp_path / "a.tif", PIXELS))
    assert np.array_equal(raster.pixels, PIXELS)
    assert raster.epsg == 32633
    assert raster.transform == (10, 0, 404400, 0, -10, 5342400)


def test_a_window_comes_with_its_own_corner(tmp_path):
    raster = read_raster(write_geotiff(tmp_path / "a.tif", PIXELS), (2, 1, 4, 3))
    assert np.array_equal(raster.pixels, PIXELS[:, 1:4, 2:6])
    assert raster.transform == (10, 0, 404420, 0, -10, 5342390)


def test_without_a_coordinate_system_the_epsg_is_zero_and_nothing_is_warned(tmp_path, recwarn):
    path = write_geotiff(tmp_path / "a.tif", PIXELS, crs=None, transform=rasterio.Affine.identity())
    recwarn.clear()
    assert read_raster(path).epsg == 0
    assert not recwarn.list


@pytest.mark.parametrize("epsg", [32601, 32633, 32760, 3857, 4326, 3035, 3310, 27700, 2154])
def test_the_keys_of_a_file_alone_tell_the_code_that_the_registry_tells(tmp_path, epsg):
    path = write_geotiff(tmp_path / "a.tif", PIXELS, crs=f"EPSG:{epsg}")
    with rasterio.open(path) as dataset:
        expected = (dataset.crs.to_epsg(), tuple(dataset.transform)[:6])
    with session():
        raster = read_raster(path)
    assert (raster.epsg, raster.transform) == expected
    assert raster.epsg == epsg


def test_a_nodata_tag_of_zero_changes_nothing(tmp_path):
    assert np.array_equal(
        read_raster(write_geotiff(tmp_path / "a.tif", PIXELS, nodata=0)).pixels, PIXELS
    )


@pytest.mark.parametrize("keep", [0, 3, 200, 0.6])
def test_a_truncated_file_is_one_error_that_names_it(tmp_path, keep):
    path = write_geotiff(tmp_path / "cut.tif", np.ones((1, 120, 120), np.uint16))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with session(), pytest.raises(PatchError, match=r"cut\.tif: cannot be read") as caught:
        read_raster(path)
    assert caught.value.file == str(path)
    assert "See previous exception" not in str(caught.value)


def test_the_words_of_gdal_are_in_the_error_and_not_in_the_log(tmp_path, caplog):
    path = write_geotiff(tmp_path / "cut.tif", np.ones((1, 120, 120), np.uint16))
    path.write_bytes(path.read_bytes()[:20_000])
    with caplog.at_level(logging.DEBUG), session(), pytest.raises(PatchError, match="IReadBlock"):
        read_raster(path)
    assert caplog.text == ""
    assert logging.getLogger("rasterio").level == logging.NOTSET


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PatchError, match=r"none\.tif: missing"):
        read_raster(tmp_path / "none.tif")


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_other_types_than_uint16_are_refused(tmp_path, dtype):
    path = write_geotiff(tmp_path / "a.tif", PIXELS.astype(dtype))
    with pytest.raises(PatchError, match=f"{np.dtype(dtype).name}, not uint16"):
        read_raster(path)


def test_another_nodata_value_than_zero_is_refused(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", PIXELS, nodata=65535)
    with pytest.raises(PatchError, match="nodata is 65535"):
        read_raster(path)


def test_a_written_raster_is_what_rasterio_reads_back(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65535, (1, 20, 20), np.uint16)
    path = tmp_path / "written.tif"
    write_raster(path, pixels, (60, 0, 682800, 0, -60, 6971220), 32635, description="simulated")
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), pixels)
        assert dataset.crs.to_epsg() == 32635
        assert tuple(dataset.transform)[:6] == (60, 0, 682800, 0, -60, 6971220)
        assert dataset.tags()["TIFFTAG_IMAGEDESCRIPTION"] == "simulated"


def test_versions_name_rasterio_and_gdal():
    assert versions() == {"rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__}
