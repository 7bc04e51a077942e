"""Small scenes for tests: whole tiles as COGs at a tenth of the resolution, and their items."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import rasterio
from stac_server import item_of

from preprocess.bands import BANDS, L2A_BANDS

CORNERS = {"10SFH": (32610, 600000, 4200000), "10SGH": (32610, 699960, 4200000)}
DECIMATION = 10
REAL = "S2A_29RKH_20200219_0_L2A"
# 9 by 9 squares of 10SFH or so, on both sides of blocks of every band
BOX = [-121.70, 37.60, -121.58, 37.69]
REAL_BOX = [-11.7, 24.6, -11.5, 24.8]


def scene(
    root: Path,
    tile: str = "10SFH",
    day: str = "20190715",
    *,
    cloud: float = 5.0,
    orbit: int = 113,
    baseline: str = "0213",
    sequence: int = 0,
    bands: tuple[str, ...] = L2A_BANDS,
) -> dict:
    """Write a scene; return its item, whose links begin with ``{base}/files/``."""
    name = f"S2A_{tile}_{day}_{sequence}_L2A"
    random = np.random.default_rng(int(day) + sequence)
    epsg, x, y = CORNERS[tile]
    folder = root / name
    folder.mkdir(parents=True)
    for band in [*bands, "SCL"]:
        size_m = 20 if band == "SCL" else BANDS[band].ground_resolution_m
        side = 109_800 // size_m // DECIMATION
        if band == "SCL":
            pixels = random.choice([4, 4, 4, 4, 5, 6], (side, side)).astype(np.uint8)
            pixels[: side * 7 // 24, :] = 9
        else:
            pixels = random.integers(150, 900, (side, side), np.uint16)
            pixels[:, : side // 20] = 0
        with rasterio.open(
            folder / f"{band}.tif", "w", driver="COG", width=side, height=side, count=1,
            dtype=pixels.dtype.name, crs=f"EPSG:{epsg}", nodata=0, blocksize=128,
            transform=rasterio.Affine(size_m * DECIMATION, 0, x, 0, -size_m * DECIMATION, y),
            compress="deflate", overviews="auto",
        ) as dataset:  # fmt: skip
            dataset.write(pixels, 1)
    return item_of(name, tile, day, [*bands, "SCL"], cloud=cloud, orbit=orbit, baseline=baseline)


def real_scene(real_data: Path, root: Path) -> dict:
    """Copy the real scene, whose links follow another layout; return its item."""
    folder = next((real_data / "earth_search_cog").rglob(REAL))
    shutil.copytree(folder, root / REAL, copy_function=shutil.copyfile)
    (root / REAL).chmod(0o755)
    item = json.loads((folder / f"{REAL}.json").read_text())
    for asset in item["assets"].values():
        asset["href"] = f"{{base}}/files/{REAL}/{Path(asset['href']).name}"
    return item


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
