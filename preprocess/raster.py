"""The only module that opens rasters: a path comes in, uint16 pixels with their grid go out."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from preprocess.patch import PatchError, Transform
from preprocess.shards.layout import NODATA

SIMULATED_TAG = "simulated, never measured"


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


@contextmanager
def session() -> Iterator[None]:
    """Read many small files within this context.

    GDAL does not list the folder of every file it opens, in search of side files; what GDAL says
    of a bad file is part of the error and not logged a second time.
    """
    log = logging.getLogger("rasterio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            yield
    finally:
        log.setLevel(level)


def read_raster(path: Path, window: tuple[int, int, int, int] | None = None) -> Raster:
    """Read all bands of a uint16 raster, whole or a window (column, row, width, height) of pixels.

    Raises:
        PatchError: the file is missing, unreadable, truncated, not uint16, or marks nodata by
            another value than 0.
    """
    area = Window(*window) if window else None
    try:
        with _opened(path) as dataset:
            _check_values(path, dataset)
            transform = _moved(tuple(dataset.transform)[:6], *(window or (0, 0))[:2])
            return Raster(dataset.read(window=area), transform, _epsg(dataset.crs))
    except RasterioError as error:
        if not path.exists():
            raise PatchError(path, "missing") from error
        # rasterio puts GDAL's own words, which name band and strip, into the cause
        raise PatchError(
            path, f"cannot be read as a raster ({error.__cause__ or error})"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of rasterio and GDAL."""
    return {"rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__}


@contextmanager
def _opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    with warnings.catch_warnings():
        # patches without a coordinate system are stored with EPSG 0, which says it
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
    with dataset:
        yield dataset


def _check_values(path: Path, dataset: rasterio.DatasetReader) -> None:
    unexpected = [dtype for dtype in dataset.dtypes if dtype != "uint16"]
    if unexpected:
        raise PatchError(path, f"pixels are {unexpected[0]}, not uint16")
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


@dataclass(frozen=True, slots=True)
class GeotiffTemplate:
    """A GeoTIFF of GDAL's own writing, of which only the corner and the pixels are exchanged.

    GDAL takes about a millisecond to create a file; exchanging bytes takes microseconds.
    """

    content: bytes
    corner_at: int
    pixels_at: int

    def render(self, pixels: npt.NDArray[np.uint16], x: float, y: float) -> bytes:
        """Return the file of a single band (height, width) with its upper left corner at x, y."""
        file = bytearray(self.content)
        struct.pack_into("<2d", file, self.corner_at, x, y)
        file[self.pixels_at : self.pixels_at + pixels.nbytes] = pixels.astype("<u2").tobytes()
        return bytes(file)


@lru_cache(maxsize=64)
def simulated_template(size_px: int, resolution_m: float, epsg: int) -> GeotiffTemplate:
    """Return a template for square single-band GeoTIFFs tagged as simulated."""
    # values that occur once, so that their places in the file are certain
    x, y = 123456.789, 987654.321
    pixels = np.arange(1, size_px * size_px + 1, dtype="<u2").reshape(size_px, size_px)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=size_px, height=size_px, count=1, dtype="uint16",
            crs=CRS.from_epsg(epsg), blockysize=size_px,
            transform=rasterio.Affine(resolution_m, 0, x, 0, -resolution_m, y),
        ) as dataset:  # fmt: skip
            dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION=SIMULATED_TAG)
            dataset.write(pixels, 1)
        content = bytes(memory.getbuffer())
    return GeotiffTemplate(
        content=content,
        corner_at=content.index(struct.pack("<2d", x, y)),
        pixels_at=content.index(pixels.tobytes()),
    )
