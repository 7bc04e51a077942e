"""The only module that opens rasters: a path comes in, pixels with their grid go out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.crs import CRS
from rasterio.env import hasenv
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform as reproject
from rasterio.windows import Window

from preprocess.shards.format import NODATA
from preprocess.shards.patch import PatchError, Transform

# GDAL's own default is a twentieth of the machine's memory, whatever the job was granted. This much
# holds the blocks that one column of patches crosses, in all bands of a product. In bytes: rasterio
# hands the number on as it is, and a cache of 384 bytes decodes a block anew for every patch.
CACHE_BYTES = 384 * 2**20
IN_ZIP = "/vsizip/"
# Of patches of a few kilobytes, two thirds of the time of opening went into PROJ's database: GDAL
# compares what the registry says of a GeoTIFF's EPSG code with the file's own keys. The keys alone
# give the same code; a file that contradicts its own code has none.
_OPTIONS = {
    "GTIFF_SRS_SOURCE": "GEOKEYS",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_CACHEMAX": CACHE_BYTES,
}

Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Raster:
    """Pixels and grid of a file, or of a window of it.

    Attributes:
        pixels: (bands, height, width) uint16, digital numbers as delivered.
        transform: affine a b c d e f of the upper left pixel, in units of the CRS.
        epsg: of the coordinate system; 0 without one.
    """

    pixels: npt.NDArray[np.uint16]
    transform: Transform
    epsg: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a raster lies.

    Attributes:
        transform: affine a b c d e f of its upper left pixel, in units of the CRS.
        epsg: of the coordinate system; 0 without one.
        width: pixels to the east.
        height: pixels to the south.
        count: bands.
    """

    transform: Transform
    epsg: int
    width: int
    height: int
    count: int


@dataclass(frozen=True, slots=True)
class Foreign:
    """Pixels of whatever type and nodata a file has.

    Attributes:
        pixels: (bands, height, width), as stored in the file.
        nodata: of each band, as the file's tag says; None without a tag.
        names: of each band, as the file says; empty where it does not.
        transform: affine a b c d e f of the upper left pixel, in units of the CRS.
        epsg: of the coordinate system; 0 without one.
    """

    pixels: npt.NDArray[Any]
    nodata: tuple[float | None, ...]
    names: tuple[str, ...]
    transform: Transform
    epsg: int


@contextmanager
def session() -> Iterator[None]:
    """Read many small files within this context.

    GDAL does not list the folder of every file it opens, in search of side files; what GDAL says
    of a bad file is part of the error and not logged a second time. Files that stay open between
    windows are closed at the end.
    """
    log = logging.getLogger("rasterio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with rasterio.Env(**_OPTIONS):
            yield
    finally:
        _held.cache_clear()
        log.setLevel(level)


def read_raster(path: Path, window: tuple[int, int, int, int] | None = None) -> Raster:
    """Read all bands of a uint16 raster, whole or a window (column, row, width, height) of pixels.

    Raises:
        PatchError: the file is missing, unreadable, truncated, not uint16, or marks nodata by
            another value than 0.
    """
    with _errors_named(path), _open(path) as dataset:
        _check_values(path, dataset, "uint16")
        grid = _grid(dataset)
        pixels = dataset.read(window=Window(*window) if window else None)
        return Raster(pixels, _moved(grid.transform, *(window or (0, 0))[:2]), grid.epsg)


def read_foreign(path: Path, window: tuple[int, int, int, int] | None = None) -> Foreign:
    """Read all bands of any raster, whole or a window (column, row, width, height) of pixels.

    Raises:
        PatchError: the file is missing, unreadable or truncated.
    """
    with _errors_named(path):
        dataset, grid = _held(path)
        return Foreign(
            pixels=dataset.read(window=Window(*window) if window else None),
            nodata=tuple(dataset.nodatavals),
            names=tuple(name or "" for name in dataset.descriptions),
            transform=_moved(grid.transform, *(window or (0, 0))[:2]),
            epsg=grid.epsg,
        )


def read_window(path: Path, window: tuple[int, int, int, int]) -> Raster:
    """Read a window like ``read_raster`` and leave the file open for the next one.

    For large rasters of which every part is read in turn: opening a JPEG 2000 file of a product and
    decoding a block of it cost much more than the patch that is cut from it.

    Raises:
        PatchError: as ``read_raster``.
    """
    with _errors_named(path):
        dataset, grid = _held(path, "uint16")
        pixels = dataset.read(window=Window(*window))
        return Raster(pixels, _moved(grid.transform, *window[:2]), grid.epsg)


def read_classes(path: Path, window: tuple[int, int, int, int] | None = None) -> Classes:
    """Read a map of classes, (height, width) uint8; the file stays open for further windows.

    Raises:
        PatchError: the file is missing, unreadable, or not uint8.
    """
    with _errors_named(path):
        dataset, _ = _held(path, "uint8")
        return np.asarray(dataset.read(1, window=Window(*window) if window else None))


def read_coarse(path: Path, size_px: int) -> npt.NDArray[Any]:
    """Read the first band as (size_px, size_px), whatever its size, from an overview if it has one.

    Raises:
        PatchError: the file is missing or unreadable.
    """
    with _errors_named(path), _open(path) as dataset:
        return np.asarray(dataset.read(1, out_shape=(size_px, size_px)))


def read_grid(path: Path) -> Grid:
    """Return where the pixels of a raster lie, and of what type they are, without reading any.

    Raises:
        PatchError: the file is missing or unreadable.
    """
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
def _held(path: Path, dtype: str = "") -> tuple[rasterio.DatasetReader, Grid]:
    """Open a file to stay open; what costs more than a window, such as its CRS, is asked once."""
    dataset = _open(path)
    if dtype:
        _check_values(path, dataset, dtype)
    return dataset, _grid(dataset)


def _open(path: Path) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        # patches without a coordinate system are stored with EPSG 0, which says it
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # rasterio.open sets GDAL up anew for every file; within session() that is done
        return rasterio.DatasetReader(path) if hasenv() else rasterio.open(path)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        if not path.exists() and IN_ZIP not in str(path):
            raise PatchError(path, "missing") from error
        # rasterio puts GDAL's own words, which name band and strip, into the cause
        raise PatchError(
            path, f"cannot be read as a raster ({error.__cause__ or error})"
        ) from error


def _grid(dataset: rasterio.DatasetReader) -> Grid:
    # GDAL's own numbers: an Affine of them takes as long as reading a small band
    c, a, b, f, d, e = dataset.get_transform()
    return Grid(
        transform=(a, b, c, d, e, f),
        epsg=_epsg(dataset.crs),
        width=dataset.width,
        height=dataset.height,
        count=dataset.count,
    )


def _check_values(path: Path, dataset: rasterio.DatasetReader, expected: str) -> None:
    unexpected = [dtype for dtype in dataset.dtypes if dtype != expected]
    if unexpected:
        raise PatchError(path, f"pixels are {unexpected[0]}, not {expected}")
    if dataset.nodata not in (None, NODATA):
        raise PatchError(path, f"nodata is {dataset.nodata:g}; only {NODATA} can be stored")


def _moved(transform: Transform, column: int, row: int) -> Transform:
    a, b, c, d, e, f = transform
    return (a, b, c + a * column + b * row, d, e, f + d * column + e * row)


def _epsg(crs: CRS | None) -> int:
    return _epsg_of_wkt(crs.to_wkt()) if crs else 0


@lru_cache(maxsize=256)
def _epsg_of_wkt(wkt: str) -> int:
    # to_epsg searches PROJ's database; a source has a handful of coordinate systems
    return CRS.from_wkt(wkt).to_epsg() or 0


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
        target: becomes a GeoTIFF of the same size, grid and type, with nodata 0 and without blocks
            that hold nothing else.
        squares: (columns, rows), counted from the upper left corner.
        size_px: side of a square.

    Raises:
        PatchError: the file is unreadable.
    """
    block_px = lcm(size_px, 16)  # TIFF blocks are multiples of 16
    with _errors_named(source), session(), _open(source) as dataset:
        keep = np.repeat(np.repeat(squares.T, size_px, 0), size_px, 1)
        grid = _grid(dataset)
        with rasterio.open(
            target, "w", driver="GTiff", width=grid.width, height=grid.height, count=1,
            dtype=dataset.dtypes[0], crs=dataset.crs, transform=rasterio.Affine(*grid.transform),
            nodata=NODATA, tiled=True, blockxsize=block_px, blockysize=block_px,
            compress="deflate", SPARSE_OK=True,
        ) as copy:  # fmt: skip
            for top in range(0, keep.shape[0], block_px):  # a row of blocks, written once
                rows = keep[top : top + block_px]
                if rows.any():
                    window = Window(0, top, rows.shape[1], rows.shape[0])
                    pixels = dataset.read(1, window=window)
                    copy.write(
                        np.where(rows, pixels, NODATA).astype(pixels.dtype), 1, window=window
                    )
