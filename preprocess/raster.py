"""The only module that imports rasterio: reads and writes pixels with their grid.

Sources call it within ``session()``. Tags, masks and side files of a raster are honoured; settings
that another installation of GDAL or PROJ left in the environment are not. A missing or unreadable
file raises ``PatchError``.
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
# which makes every CRS unknown. If rasterio has no data of its own, these paths are kept.
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

# GDAL's default is 5 % of the machine's memory, regardless of the job's limit. This size holds the
# blocks that one column of patches crosses, in all bands of a product. In bytes: rasterio passes
# the number on unchanged, and a cache of 384 bytes would decode a block again for every patch.
CACHE_BYTES = 384 * 2**20
IN_ZIP = "/vsizip/"
# For patches of a few kilobytes, two thirds of the opening time went into PROJ's database: GDAL
# compares the registry entry of a GeoTIFF's EPSG code with the file's keys. The keys alone give the
# same code; a file that contradicts its own code has none. EMPTY_DIR: otherwise GDAL lists each
# file's folder in search of side files; `_open` checks for the relevant ones itself.
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
    """Pixels of any dtype and nodata value."""

    pixels: npt.NDArray[Any]  # (bands, height, width), as stored in the file
    valid: npt.NDArray[np.bool_] | None  # (height, width), False where masked; None: no mask
    nodata: tuple[float | None, ...]  # nodata tag of each band; None without a tag
    names: tuple[str, ...]  # description of each band; empty without one
    grid: Grid


_rasterio_log, _log_lock = logging.getLogger("rasterio"), threading.Lock()
_log_levels: list[int] = []  # level seen by each open session; sessions of threads overlap


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
            if not _log_levels:  # last session: restore the level seen by the first one
                _rasterio_log.setLevel(level)


@contextmanager
def session() -> Iterator[None]:
    """Make reading many small files fast within this context.

    GDAL's message about a bad file is part of the error and not logged a second time. Files that
    stay open between windows are closed at the end.

    Raises:
        ValueError: PROJ finds no coordinate systems, so all files would seem to have none.
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
    """Read all bands of a uint16 raster, or of a window of it.

    After a window the file stays open for the next one: opening a product's JPEG 2000 file and
    decoding a block cost much more than cutting one patch.

    Raises:
        PatchError: it is not uint16, its nodata value is not 0, or its scale tags are invalid.
    """
    with _errors_named(path):
        if window:
            return _read(path, *_held(path), window)
        with _open(path) as dataset:
            return _read(path, dataset, _grid(dataset), window)


def read_unchecked(path: Path, window: Box | None = None) -> UncheckedRaster:
    """Read all bands of any raster, or of a window of it; the file stays open."""
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
    """Return the grid of a raster without reading pixels."""
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


@lru_cache(maxsize=32)  # all bands of one product and of the next
def _held(path: Path) -> tuple[rasterio.DatasetReader, Grid]:
    """Open a file and keep it open with its grid, which costs more than reading a window."""
    dataset = _open(path)
    return dataset, _grid(dataset)


def _open(path: Path) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        # patches without a coordinate system are recorded as EPSG 0
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # rasterio.open sets up GDAL for every file; within session() that is already done
        if not hasenv():
            return rasterio.open(path)
        name = str(path)
        if name.startswith(IN_ZIP):
            return rasterio.DatasetReader(path)
        # not Path.exists: for patches of a few kilobytes, it took a twentieth of the time
        if not any(os.access(name + suffix, os.F_OK) for suffix in _SIDE_FILES):
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
    """Return the validity mask in or beside the file; None without a mask.

    An alpha channel does not count as one: GDAL treats the fourth band of many files as alpha.
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
            # directory listings show bytes that are not UTF-8 as \xe9
            foreign = re.search(r"\\x[89a-f][0-9a-f]", str(path))
            reason = "its name is not UTF-8; rename it" if foreign else "missing"
            raise PatchError(path, reason) from error
        # GDAL's own message, which names band and strip, is in the cause
        reason = f"cannot be read as a raster ({error.__cause__ or error})"
        raise PatchError(path, reason) from error


def _grid(dataset: rasterio.DatasetReader) -> Grid:
    # the raw numbers: building an Affine takes as long as reading a small band
    c, a, b, f, d, e = dataset.get_transform()
    grid = Grid(
        transform=(a, b, c, d, e, f),
        crs=_crs_of(dataset.crs.to_wkt()) if dataset.crs else Crs(),
        width=dataset.width,
        height=dataset.height,
        scales=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
    )
    # within its zone UTM is accurate to 0.1 %; nearly all files are in that range
    utm = grid.epsg // 100 in (326, 327) and 1e5 < c < 9e5
    return replace(grid, on_ground=_on_ground(grid)) if grid.crs.unit_m and not utm else grid


def _on_ground(grid: Grid) -> tuple[float, float, float]:
    """Return the sides of the central pixel in metres on the ground, and the cosine between them.

    Uses the radii of curvature of the WGS 84 ellipsoid; zeros where the CRS is undefined.
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
    # search PROJ's database once each: a source has only a handful of coordinate systems
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
    """Write a raster (bands, height, width); ``options`` are GDAL's options of the driver."""
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver=driver, width=width, height=height, count=count, dtype=pixels.dtype.name,
        crs=CRS.from_epsg(epsg), transform=rasterio.Affine(*transform), **options,
    ) as dataset:  # fmt: skip
        if description:
            dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION=description)
        dataset.write(pixels)


def keep_squares(source: Path, target: Path, squares: npt.NDArray[np.bool_], size_px: int) -> None:
    """Copy a single-band raster, setting everything but the chosen squares to nodata.

    Args:
        source: a raster, possibly sparse.
        target: a GeoTIFF of the same size, grid and dtype, with nodata 0 and only blocks with data.
        squares: (columns, rows) from the upper left corner; True to keep.
        size_px: side of a square in pixels.
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
