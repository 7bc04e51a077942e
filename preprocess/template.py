"""Many small GeoTIFFs of one shape: a raster written once comes in, files as bytes go out."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.raster import write_raster

SIMULATED_TAG = "simulated, never measured"


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
    pixels = np.arange(1, size_px * size_px + 1, dtype="<u2").reshape(1, size_px, size_px)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.tif"
        transform = (resolution_m, 0.0, x, 0.0, -resolution_m, y)
        # one strip: the pixels are one piece of the file
        write_raster(path, pixels, transform, epsg, description=SIMULATED_TAG, blockysize=size_px)
        content = path.read_bytes()
    return GeotiffTemplate(
        content=content,
        corner_at=content.index(struct.pack("<2d", x, y)),
        pixels_at=content.index(pixels.tobytes()),
    )
