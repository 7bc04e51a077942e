"""Opening rasters: pixels as rasterio reads them, and one clear error for each bad file."""

import logging
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from make_data import write_geotiff

from preprocess.grid import Crs
from preprocess.raster import (
    read_grid,
    read_raster,
    read_unchecked,
    session,
    versions,
    write_raster,
)
from preprocess.shards.format import PatchError

PIXELS = np.arange(2 * 6 * 8, dtype=np.uint16).reshape(2, 6, 8)


def test_a_whole_raster_comes_with_its_grid(tmp_path):
    raster = read_raster(write_geotiff(tmp_path / "a.tif", PIXELS))
    assert np.array_equal(raster.pixels, PIXELS)
    assert raster.grid.epsg == 32633
    assert raster.grid.transform == (10, 0, 404400, 0, -10, 5342400)


def test_a_window_comes_with_its_own_corner(tmp_path):
    raster = read_raster(write_geotiff(tmp_path / "a.tif", PIXELS), (2, 1, 4, 3))
    assert np.array_equal(raster.pixels, PIXELS[:, 1:4, 2:6])
    assert raster.grid.transform == (10, 0, 404420, 0, -10, 5342390)


def test_without_a_coordinate_system_the_epsg_is_zero_and_nothing_is_warned(tmp_path, recwarn):
    path = write_geotiff(tmp_path / "a.tif", PIXELS, crs=None, transform=rasterio.Affine.identity())
    recwarn.clear()
    assert read_raster(path).grid.crs == Crs()
    assert not recwarn.list


@pytest.mark.parametrize("epsg", [32601, 32633, 32760, 3857, 4326, 3035, 3310, 27700, 2154])
def test_the_keys_of_a_file_alone_tell_the_code_that_the_registry_tells(tmp_path, epsg):
    path = write_geotiff(tmp_path / "a.tif", PIXELS, crs=f"EPSG:{epsg}")
    with rasterio.open(path) as dataset:
        expected = (dataset.crs.to_epsg(), tuple(dataset.transform)[:6])
    with session():
        raster = read_raster(path)
    assert (raster.grid.epsg, raster.grid.transform) == expected
    assert raster.grid.epsg == epsg


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


def test_sessions_of_threads_that_overlap_leave_the_log_as_it_was():
    level = logging.getLogger("rasterio").level
    first, second = session(), session()
    with ThreadPoolExecutor(1) as threads:  # the second begins before the first ends
        with first:
            threads.submit(second.__enter__).result()
        threads.submit(second.__exit__, None, None, None)
    assert logging.getLogger("rasterio").level == level


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


def write(path, pixels=PIXELS, *, crs="EPSG:32633", mask=None, internal=True, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    grid = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6) if crs else None
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=count,
            dtype=pixels.dtype.name, crs=crs, transform=grid,
        ) as dataset,
    ):  # fmt: skip
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
        for name, value in tags.items():
            setattr(dataset, name, value)
    return path


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("read", [read_raster, read_unchecked])
def test_masks_in_and_beside_a_file_are_honoured(tmp_path, internal, read):
    mask = np.full(PIXELS.shape[1:], 255, np.uint8)
    mask[:, :3] = 0
    path = write(tmp_path / "a.tif", PIXELS + np.uint16(1), mask=mask, internal=internal)
    assert path.with_name("a.tif.msk").exists() is not internal
    with session():
        found = read(path)
        part = read(path, (2, 1, 4, 3))
    if read is read_raster:
        assert np.array_equal(found.pixels, (PIXELS + 1) * (mask > 0))
        assert (part.pixels[:, :, 0] == 0).all()
        assert (part.pixels[:, :, 1:] > 0).all()
    else:
        assert np.array_equal(found.valid, mask > 0)
        assert part.valid.tolist() == 3 * [[False, True, True, True]]


def test_a_side_file_gives_nodata_crs_and_grid(tmp_path):
    path = write(tmp_path / "a.tif", crs=None)
    bands = "".join(
        f'<PAMRasterBand band="{n}"><NoDataValue>7</NoDataValue></PAMRasterBand>' for n in (1, 2)
    )
    path.with_name("a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>5e5,10,0,5e6,0,-10</GeoTransform>"
        f"{bands}</PAMDataset>"
    )
    with session():
        found = read_unchecked(path)
    assert found.nodata == (7, 7)
    assert found.grid.epsg == 3857
    assert "EPSG 3857, whose metres are not the ground's" in found.grid.fault(10)


@pytest.mark.parametrize("suffix", [".tfw", ".TFW", ".wld"])
def test_a_world_file_gives_the_grid(tmp_path, suffix):
    path = write(tmp_path / "a.tif", crs=None)
    path.with_suffix(suffix).write_text("10\n0\n0\n-10\n500005\n4999995\n")
    with session():
        assert read_grid(path).transform == (10, 0, 5e5, 0, -10, 5e6)


def test_scale_and_offset_tags_claim_the_offset_or_are_refused(tmp_path):
    for number, (scale, offset, claim) in enumerate(((1e-4, -0.1, -1000), (1e-4, 0, 0))):
        path = write(tmp_path / f"{number}.tif", scales=[scale] * 2, offsets=[offset] * 2)
        assert read_raster(path).grid.boa_offset == claim
    path = write(tmp_path / "other.tif", scales=[0.01] * 2, offsets=[0, 0])
    with pytest.raises(PatchError, match=r"values are 0\.01 x number"):
        read_raster(path)


@pytest.mark.parametrize(
    ("crs", "grid", "fault"),
    [
        ("EPSG:32633", (10, 0, 5e5, 0, -10, 5e6), ""),
        ("EPSG:3035", (10, 0, 4e6, 0, -10, 3e6), ""),
        ("EPSG:32633", (10, 0, 5e5, 0, 10, 5e6), r"south-up \(pixels of 10 x 10\)"),
        ("EPSG:32633", (-10, 0, 5e5, 0, -10, 5e6), "mirrored"),
        ("EPSG:32633", (8, 6, 5e5, 6, -8, 5e6), "rotated"),
        ("EPSG:32633", (20, 0, 5e5, 0, -20, 5e6), "20 x 20 m by EPSG 32633, not of 10 m"),
        ("EPSG:32633", (1, 0, 0, 0, 1, 0), "no position in it"),
        ("EPSG:32633", (10, 0, 9.5e6, 0, -10, 5e6), "a pixel is 4.6 x 4.6 m there"),
        ("EPSG:32633+5773", (10, 0, 5e5, 0, -10, 5e6), ""),
        ("EPSG:3857", (10, 0, 5e5, 0, -10, 5e6), "a pixel is 7.[0-9]+ x 7.[0-9]+ m there"),
        ("EPSG:3857", (10, 0, 5e5, 0, -10, 1e4), ""),
        ("EPSG:6933", (10, 0, 1e6, 0, -10, 6.3e6), "a pixel is 5.92 x 16.9 m there"),
        ("EPSG:4087", (10, 0, 1e6, 0, -10, 6.68e6), "a pixel is 5.01 x 10 m there"),
        ("EPSG:3310", (10, 0, 9e7, 0, -10, 9e7), "outside of where EPSG 3310 is defined"),
        ("EPSG:3413", (10, 0, -1e6, 0, -10, -1e6), ""),
        ("EPSG:4326", (1e-4, 0, 12, 0, -1e-4, 48), "EPSG 4326, whose units are not metres"),
        ("+proj=longlat +a=6378137 +rf=298", (1e-4, 0, 12, 0, -1e-4, 48), "not metres"),
        ("+proj=sinu +R=6371007.181 +units=m", (463.3, 0, 5e5, 0, -463.3, 5e6), "463.3 x 463.3 m"),
        ("+proj=tmerc +lon_0=15 +k=0.9996 +x_0=500000 +datum=WGS84 +units=us-ft",
         (10, 0, 5e5, 0, -10, 5e6), "3.048"),
        ("+proj=sinu +R=6371007.181 +units=m", (10, 0, 5e6, 0, -10, 5e6), "there, skewed"),
        (None, (1, 0, 0, 0, 1, 0), ""),
        (None, (1, 0, 0, 0, -1, 0), ""),
        (None, (10, 0, 5e5, 0, -10, 5e6), ""),
        (None, (20, 0, 5e5, 0, -20, 5e6), "20 x 20 m by no CRS, not of 10 m"),
        (None, (10, 0, 5e5, 0, 10, 5e6), "south-up"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_a_grid_is_judged_by_its_coordinate_system_with_or_without_a_code(
    tmp_path, crs, grid, fault
):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint16", crs=crs,
        transform=rasterio.Affine(*grid),
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 4, 4), np.uint16))
    with session():
        found = read_grid(path)
    assert re.search(fault, found.fault(10)) if fault else not found.fault(10)
    assert bool(found.crs.epsg) != bool(found.crs.wkt) or crs is None


@pytest.mark.parametrize(
    "name", ["PROJ_DATA", "PROJ_LIB", "GDAL_DATA", "GDAL_SKIP", "GTIFF_SRS_SOURCE"]
)
def test_another_installation_of_gdal_or_proj_changes_nothing(tmp_path, name):
    path = write(tmp_path / "a.tif")
    program = (
        "import sys; from pathlib import Path; from preprocess.raster import read_grid, session\n"
        "with session(): print(read_grid(Path(sys.argv[1])).epsg)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, name: "GTiff" if name == "GDAL_SKIP" else str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("32633\n", 0), ended.stderr


def test_proj_without_its_data_is_an_error_before_any_file_is_read(tmp_path):
    program = (
        "import os; from preprocess.raster import session\n"
        f"os.environ['PROJ_DATA'] = {str(tmp_path)!r}\n"
        "with session(): pass"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "unset PROJ_DATA and PROJ_LIB" in ended.stderr
