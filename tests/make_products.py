"""Small products for tests: whole tiles on disk of which only a few squares hold pixels."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from preprocess.bands import BANDS, L2A_BANDS, native_groups
from preprocess.raster import write_raster
from preprocess.sources.simulated import SEASONS, Acquisition, make_land, observe

TILE_M = 109_800
# Corners as ESA's metadata give them (ULX, ULY).
CORNERS = {"10SFH": (32610, 600000, 4200000), "10SGH": (32610, 699960, 4200000)}
XML = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE></Product_Info>
<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE>
</QUANTIFICATION_VALUES_LIST>{offsets}</n1:General_Info>
<n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>{cloud}</Cloud_Coverage_Assessment>
</n1:Quality_Indicators_Info></n1:Level-2A_User_Product>
"""

Square = tuple[int, int]


def safe_product(
    root: Path,
    squares: Mapping[Square, int],
    *,
    tile: str = "10SFH",
    stamp: str = "20190715T184921",
    baseline: str = "0213",
    cloud: float = 3.0,
    xml: bool = True,
    made: str = "",
) -> Path:
    """Write a SAFE product with GeoTIFF rasters; return its folder.

    Args:
        root: where it goes.
        squares: SCL class of every square with data, by column and row.
        tile: one of ``CORNERS``.
        stamp: time of acquisition.
        baseline: four digits; from 0400 on pixels carry the offset of 1000 and the XML says so.
        cloud: percent, for the XML.
        xml: write metadata.
        made: time at the end of the name; empty takes that of the acquisition.
    """
    product = f"S2A_MSIL2A_{stamp}_N{baseline}_R113_T{tile}_{made or stamp}"
    folder = root / f"{product}.SAFE"
    images = folder / "GRANULE" / f"L2A_T{tile}_A000001_{stamp}" / "IMG_DATA"
    raised = 1000 if 400 <= int(baseline) < 9999 else 0
    for band in L2A_BANDS:
        size_m = BANDS[band].ground_resolution_m
        path = images / f"R{size_m}m" / f"T{tile}_{stamp}_{band}_{size_m}m.tif"
        _write(path, tile, size_m, "uint16", _pixels(band, squares, size_m, raised))
    classes = {square: np.full((60, 60), code, np.uint8) for square, code in squares.items()}
    _write(images / "R20m" / f"T{tile}_{stamp}_SCL_20m.tif", tile, 20, "uint8", classes)
    if xml:
        node = '<BOA_ADD_OFFSET band_id="{}">-1000</BOA_ADD_OFFSET>'
        offsets = "".join(node.format(number) for number in range(13)) if raised else ""
        text = XML.format(baseline=f"{baseline[:2]}.{baseline[2:]}", offsets=offsets, cloud=cloud)
        (folder / "MTD_MSIL2A.xml").write_text(text)
    return folder


def simulated_products(root: Path, num_dates: int, *, seed: int = 3) -> list[Acquisition]:
    """Write the first simulated region of every date as a SAFE product of lossless JPEG 2000.

    Baseline 04.00: pixels carry the offset of 1000, and the XML says so. Return the scenes.
    """
    scenes = [
        Acquisition(0, date % len(SEASONS), date // len(SEASONS)) for date in range(num_dates)
    ]
    land = make_land(seed, 0)
    classes = np.where(land.order[::2, ::2] < 0.5, 4, 5).astype(np.uint8)  # SCL
    for scene in scenes:
        tile, stamp = scene.tile, scene.stamp()
        product = f"S2A_MSIL2A_{stamp}_N0400_R000_T{tile.name}_{stamp}"
        images = root / f"{product}.SAFE/GRANULE/L2A_T{tile.name}_A000000_{stamp}/IMG_DATA"
        seen = observe(seed, scene, land)
        pieces = [("SCL", 20, classes)]
        for group, bands in native_groups(L2A_BANDS).items():
            named = zip(bands, seen[group], strict=True)
            pieces += [(band, int(group[1:]), values + np.uint16(1000)) for band, values in named]
        for band, size_m, pixels in pieces:
            side = TILE_M // size_m
            whole = np.zeros((1, side, side), pixels.dtype)
            column, row = (number * 1200 // size_m for number in scene.corner)
            whole[0, row : row + len(pixels), column : column + len(pixels)] = pixels
            path = images / f"R{size_m}m/T{tile.name}_{stamp}_{band}_{size_m}m.jp2"
            path.parent.mkdir(parents=True, exist_ok=True)
            grid = (size_m, 0, tile.x, 0, -size_m, tile.y)
            # 8-bit maps and 16-bit bands alike: without these GDAL would compress them lossily
            lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
            write_raster(path, whole, grid, tile.epsg, **lossless)
        node = '<BOA_ADD_OFFSET band_id="{}">-1000</BOA_ADD_OFFSET>'
        offsets = "".join(node.format(number) for number in range(13))
        text = XML.format(baseline="04.00", offsets=offsets, cloud=0.0)
        (root / f"{product}.SAFE" / "MTD_MSIL2A.xml").write_text(text)
    return scenes


def zipped(folder: Path) -> Path:
    """Replace a product by a zip of it."""
    path = shutil.make_archive(str(folder.with_suffix("")), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    return Path(path)


def _pixels(
    band: str, squares: Mapping[Square, int], size_m: int, raised: int
) -> dict[Square, np.ndarray]:
    size_px = 1200 // size_m
    random = np.random.default_rng(sum(map(ord, band)))
    return {
        square: random.integers(150, 3000, (size_px, size_px), np.uint16) + np.uint16(raised)
        for square in squares
    }


def _write(
    path: Path, tile: str, size_m: int, dtype: str, squares: Mapping[Square, np.ndarray]
) -> None:
    epsg, x, y = CORNERS[tile]
    side = TILE_M // size_m
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=1, dtype=dtype,
        crs=f"EPSG:{epsg}", transform=rasterio.Affine(size_m, 0, x, 0, -size_m, y),
        tiled=True, blockxsize=256, blockysize=256, compress="deflate", SPARSE_OK=True,
    ) as dataset:  # fmt: skip
        for (column, row), pixels in squares.items():
            size_px = pixels.shape[0]
            window = Window(column * size_px, row * size_px, size_px, size_px)
            dataset.write(pixels, 1, window=window)
