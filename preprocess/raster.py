"""The only module that imports rasterio: reads and writes pixels with their grid.

Sources call it within ``session()``. What a file says of itself by tags, masks and side files is
honoured; what another installation of GDAL or PROJ left in the environment is not. A file that is
missing or unreadable raises ``PatchError``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, hypot, isfinite, lcm, radians, sin, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# A loaded module or an active conda environment points GDAL and PROJ to data of another version,
# with which every CRS is unknown. Where rasterio brings no data of its own, their places are kept.
_spec = importlib.util.find_spec("rasterio")
_own = _spec is not None and (Path(str(_spec.origin)).parent / "proj_data").is_dir()
_kept = () if _own else ("GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_DATA", "PROJ_LIB")
for _name in [*os.environ]:
    if _name.startswith(("GDAL_", "GTIFF_", "PROJ_")) and _name not in _kept:
        del os.environ[_name]

import rasterio  # noqa: E402  # reads these variables when it is imported
from rasterio._err import CPLE_BaseError  # noqa: E402  # of PROJ; no public name, tested
from rasterio.crs import CRS  # noqa: E402
from rasterio.enums import MaskFlags  # noqa: E402
from rasterio.env import hasenv  # noqa: E402
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError  # noqa: E402
from rasterio.warp import transform as reproject  # noqa: E402
from rasterio.windows import Window  # noqa: E402

from preprocess.grid import Crs, Grid  # noqa: E402
from preprocess.shards.format import NODATA, PatchError, Transform  # noqa: E402

# GDAL's own default is a twentieth of the machine's memory, whatever the job was granted. This much
# holds the blocks that one column of patches crosses, in all bands of a product. In bytes: rasterio
# hands the number on as it is, and a cache of 384 bytes decodes a block anew for every patch.
CACHE_BYTES = 384 * 2**20
IN_ZIP = "/vsizip/"
# Of patches of a few kilobytes, two thirds of the time of opening went into PROJ's database: GDAL
# compares what the registry says of a GeoTIFF's EPSG code with the file's own keys. The keys alone
# give the same code; a file that contradicts its own code has none. EMPTY_DIR: GDAL would list the
# folder of every file in search of side files; `_open` looks for the two kinds that count.
_OPTIONS = {
    "GTIFF_SRS_SOURCE": "GEOKEYS",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_CACHEMAX": CACHE_BYTES,
}
_SIDE_FILES = (".aux.xml", ".msk")  # nodata, CRS and statistics; a mask
_WORLD_FILES = (".tfw", ".tifw", ".wld", ".TFW", ".TIFW", ".WLD")

Box = tuple[int, int, int, int]  # column, row, width, height in pixels
Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Raster:
    """Pixels and grid of a file, or of a window of it."""

    pixels: npt.NDArray[np.uint16]  # (bands, height, width), digital numbers; 0 where masked
    grid: Grid


@dataclass(frozen=True, slots=True)
class UncheckedRaster:
    """Pixels of whatever type and nodata a file has."""

    pixels: npt.NDArray[Any]  # (bands, height, width), as stored in the file
    valid: npt.NDArray[np.bool_] | None  # (height, width), False where masked; None: no mask
    nodata: tuple[float | None, ...]  # of each band, as the file's tag says; None without a tag
    names: tuple[str, ...]  # of each band, as the file says; empty where it does not
    grid: Grid


_rasterio_log, _log_lock = logging.getLogger("rasterio"), threading.Lock()
_log_levels: list[int] = []  # found by each session that is open; sessions of threads overlap


@contextmanager
def _silent_log() -> Iterator[None]:
    with _log_lock:
        _log_levels.append(_rasterio_log.level)
        _rasterio_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        with _log_lock:
            level = _log_levels.pop()
            if not _log_levels:  # the last to end: this is what the first one found
                _rasterio_log.setLevel(level)


@contextmanager
def session() -> Iterator[None]:
    """Read many small files within this context.

    What GDAL says of a bad file is part of the error and not logged a second time. Files that stay
    open between windows are closed at the end.

    Raises:
        ValueError: PROJ knows no coordinate system, so that all files would seem to have none.
    """
    with _silent_log(), rasterio.Env(**_OPTIONS):
        try:
            CRS.from_epsg(32633)
        except CRSError as error:
            raise ValueError(
                f"PROJ cannot look up coordinate systems ({error}); unset PROJ_DATA and PROJ_LIB, "
                "or point PROJ_DATA at the data of the PROJ that rasterio is built with"
            ) from error
        try:
            yield
        finally:
            _held.cache_clear()


def read_raster(path: Path, window: Box | None = None) -> Raster:
    """Read all bands of a uint16 raster, whole or a window of it.

    After a window the file stays open for the next one: opening a JPEG 2000 file of a product and
    decoding a block of it cost much more than the patch that is cut from it.

    Raises:
        PatchError: it is not uint16, or marks nodata by another value than 0.
    """
    with _errors_named(path):
        if window:
            return _read(path, *_held(path), window)
        with _open(path) as dataset:
            return _read(path, dataset, _grid(dataset), window)


def read_unchecked(path: Path, window: Box | None = None) -> UncheckedRaster:
    """Read all bands of any raster, whole or a window of it; the file stays open."""
    with _errors_named(path):
        dataset, grid = _held(path)
        return UncheckedRaster(
            pixels=dataset.read(window=_window(window)),
            valid=_valid(dataset, window),
            nodata=tuple(dataset.nodatavals),
            names=tuple(name or "" for name in dataset.descriptions),
            grid=_moved(grid, window),
        )


def read_classes(path: Path, window: Box | None = None) -> Classes:
    """Read a map of classes, (height, width) uint8; the file stays open for further windows."""
    with _errors_named(path):
        dataset, _ = _held(path)
        _check_values(path, dataset, "uint8")
        return np.asarray(dataset.read(1, window=_window(window)))


def read_coarse(path: Path, size_px: int) -> npt.NDArray[Any]:
    """Read the first band as (size_px, size_px), from an overview if there is one."""
    with _errors_named(path), _open(path) as dataset:
        return np.asarray(dataset.read(1, out_shape=(size_px, size_px)))


def read_grid(path: Path) -> Grid:
    """Return where the pixels of a raster lie without reading any."""
    with _errors_named(path), _open(path) as dataset:
        return _grid(dataset)


def to_degrees(
    epsg: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return longitudes and latitudes (WGS 84) of points in a coordinate system."""
    longitudes, latitudes = reproject(
        CRS.from_epsg(epsg), CRS.from_epsg(4326), x.ravel().tolist(), y.ravel().tolist()
    )
    return np.reshape(longitudes, x.shape), np.reshape(latitudes, y.shape)


def versions() -> dict[str, str]:
    """Return the versions of rasterio and GDAL."""
    return {"rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__}


@lru_cache(maxsize=32)  # all bands of a product, and those of the next
def _held(path: Path) -> tuple[rasterio.DatasetReader, Grid]:
    """Open a file to stay open; its grid costs more than a window and is found once."""
    dataset = _open(path)
    return dataset, _grid(dataset)


def _open(path: Path) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        # patches without a coordinate system are stored with EPSG 0, which says it
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # rasterio.open sets GDAL up anew for every file; within session() that is done
        if not hasenv():
            return rasterio.open(path)
        if str(path).startswith(IN_ZIP):
            return rasterio.DatasetReader(path)
        if not any(path.with_name(path.name + suffix).exists() for suffix in _SIDE_FILES):
            dataset = rasterio.DatasetReader(path)
            placed = tuple(dataset.get_transform()) != (0, 1, 0, 0, 0, 1)
            if placed or not any(path.with_suffix(suffix).exists() for suffix in _WORLD_FILES):
                return dataset
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):  # looks for side files by name
            return rasterio.DatasetReader(path)


def _read(path: Path, dataset: rasterio.DatasetReader, grid: Grid, window: Box | None) -> Raster:
    _check_values(path, dataset, "uint16")
    try:
        _ = grid.boa_offset
    except ValueError as error:
        raise PatchError(path, str(error)) from error
    pixels = dataset.read(window=_window(window))
    valid = _valid(dataset, window)
    if valid is not None:
        pixels[:, ~valid] = NODATA
    return Raster(pixels, _moved(grid, window))


def _valid(dataset: rasterio.DatasetReader, window: Box | None) -> npt.NDArray[np.bool_] | None:
    """Return what a mask in or beside the file marks as valid; None without a mask.

    A channel of transparency is no mask here: GDAL calls the fourth band of many files that.
    """
    flags = dataset.mask_flag_enums[0]
    if MaskFlags.per_dataset not in flags or MaskFlags.alpha in flags:
        return None
    return np.asarray(dataset.read_masks(1, window=_window(window)) != 0)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        if not path.exists() and IN_ZIP not in str(path):
            # a walk shows bytes that are no UTF-8 as \xe9
            foreign = re.search(r"\\x[89a-f][0-9a-f]", str(path))
            reason = "its name is not UTF-8; rename it" if foreign else "missing"
            raise PatchError(path, reason) from error
        # rasterio puts GDAL's own words, which name band and strip, into the cause
        reason = f"cannot be read as a raster ({error.__cause__ or error})"
        raise PatchError(path, reason) from error


def _grid(dataset: rasterio.DatasetReader) -> Grid:
    # GDAL's own numbers: an Affine of them takes as long as reading a small band
    c, a, b, f, d, e = dataset.get_transform()
    grid = Grid(
        transform=(a, b, c, d, e, f),
        crs=_crs_of(dataset.crs.to_wkt()) if dataset.crs else Crs(),
        width=dataset.width,
        height=dataset.height,
        scales=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
    )
    # within its zone UTM is true to 0.1 %, and nearly all files lie there
    utm = grid.epsg // 100 in (326, 327) and 1e5 < c < 9e5
    return replace(grid, on_ground=_on_ground(grid)) if grid.crs.unit_m and not utm else grid


def _on_ground(grid: Grid) -> tuple[float, float, float]:
    """Return the sides of a pixel amid a raster in metres of ground, and the cosine between them.

    By the radii of curvature of the WGS 84 ellipsoid.
    """
    (a, b, c, d, e, f), width, height = grid.transform, grid.width, grid.height
    ends = ((0, height / 2), (width, height / 2), (width / 2, 0), (width / 2, height))
    try:
        longitudes, latitudes = reproject(
            CRS.from_epsg(grid.epsg) if grid.epsg else CRS.from_wkt(grid.crs.wkt),
            CRS.from_epsg(4326),
            [a * column + b * row + c for column, row in ends],
            [d * column + e * row + f for column, row in ends],
        )
    except CPLE_BaseError:
        return 0.0, 0.0, 0.0
    if not all(map(isfinite, longitudes + latitudes)):
        return 0.0, 0.0, 0.0
    squared_eccentricity, middle = 0.00669438, radians(sum(latitudes) / 4)
    flat = 1 - squared_eccentricity * sin(middle) ** 2
    along_row, along_column = (
        (
            6378137.0 / sqrt(flat) * cos(middle)
            * radians((longitudes[end] - longitudes[start] + 180) % 360 - 180) / pixels,
            6378137.0 * (1 - squared_eccentricity) / flat**1.5
            * radians(latitudes[end] - latitudes[start]) / pixels,
        )
        for start, end, pixels in ((0, 1, width), (2, 3, height))
    )  # fmt: skip
    sides = hypot(*along_row), hypot(*along_column)
    product = along_row[0] * along_column[0] + along_row[1] * along_column[1]
    return *sides, abs(product) / (sides[0] * sides[1])


def _check_values(path: Path, dataset: rasterio.DatasetReader, expected: str) -> None:
    for dtype in dataset.dtypes:
        if dtype != expected:
            raise PatchError(path, f"pixels are {dtype}, not {expected}")
    if dataset.nodata not in (None, NODATA):
        raise PatchError(path, f"nodata is {dataset.nodata:g}; only {NODATA} can be stored")


def _window(box: Box | None) -> Window | None:
    return Window(*box) if box else None


def _moved(grid: Grid, window: Box | None) -> Grid:
    if not window or window[:2] == (0, 0):
        return grid
    (a, b, c, d, e, f), (column, row) = grid.transform, window[:2]
    corner = (a, b, c + a * column + b * row, d, e, f + d * column + e * row)
    return replace(grid, transform=corner)


@lru_cache(maxsize=256)
def _crs_of(wkt: str) -> Crs:
    # PROJ's database is searched once: a source has a handful of coordinate systems
    crs = CRS.from_wkt(wkt)
    try:
        unit_m = float(crs.linear_units_factor[1]) if crs.is_projected else 0.0
    except CRSError:
        unit_m = 0.0
    epsg = crs.to_epsg() or 0
    return Crs(epsg, "" if epsg else wkt, unit_m)


@lru_cache(maxsize=64)
def wkt_of(epsg: int) -> str:
    """Return the well-known text of a coordinate system."""
    return str(CRS.from_epsg(epsg).to_wkt())


def write_raster(
    path: Path | str,
    pixels: npt.NDArray[Any],
    transform: Transform,
    epsg: int,
    *,
    driver: str = "GTiff",
    description: str = "",
    **options: Any,
) -> None:
    """Write a raster (bands, height, width); ``options`` are GDAL's own for the driver."""
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver=driver, width=width, height=height, count=count, dtype=pixels.dtype.name,
        crs=CRS.from_epsg(epsg), transform=rasterio.Affine(*transform), **options,
    ) as dataset:  # fmt: skip
        if description:
            dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION=description)
        dataset.write(pixels)


def keep_squares(source: Path, target: Path, squares: npt.NDArray[np.bool_], size_px: int) -> None:
    """Copy a raster of one band with everything but chosen squares set to nodata.

    Args:
        source: a raster; blocks may be absent from it.
        target: a GeoTIFF of the same size, grid and type, with nodata 0 and only blocks with data.
        squares: (columns, rows) from the upper left corner.
        size_px: side of a square.
    """
    block_px = lcm(size_px, 16)  # TIFF blocks are multiples of 16
    with _errors_named(source), session(), _open(source) as dataset:
        keep = np.repeat(np.repeat(squares.T, size_px, 0), size_px, 1)
        grid = _grid(dataset)
        with rasterio.open(
            target, "w", driver="GTiff", width=grid.width, height=grid.height, count=1,
            dtype=dataset.dtypes[0], crs=dataset.crs, transform=rasterio.Affine(*grid.transform),
            nodata=NODATA, tiled=True, blockxsize=block_px, blockysize=block_px,
            compress="deflate", zlevel=1, SPARSE_OK=True,
        ) as copy:  # fmt: skip
            for top in range(0, keep.shape[0], block_px):  # a row of blocks, written once
                rows = keep[top : top + block_px]
                if rows.any():
                    window = Window(0, top, rows.shape[1], rows.shape[0])
                    pixels = dataset.read(1, window=window)
                    kept = np.where(rows, pixels, NODATA).astype(pixels.dtype)
                    copy.write(kept, 1, window=window)
