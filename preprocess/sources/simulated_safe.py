"""Simulated L2A products: a seed comes in, SAFE folders of several dates are written and read.

The same land as in the tree of patches, seen as ESA delivers it: whole tiles of JPEG 2000 of which
only the simulated regions hold data, with XML, scene classification and, from baseline 04.00 on,
the offset in the digital numbers. So all of the way that real products take can be tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.bands import BANDS, L2A_BANDS, native_groups
from preprocess.config import SafeL2AConfig, SelectConfig, SimulatedConfig, SimulatedForm
from preprocess.land import CLASSES, Tile
from preprocess.progress import progress_of
from preprocess.radiometry import offset_of
from preprocess.raster import write_raster
from preprocess.shards.atomic_io import temporary_path, write_json
from preprocess.shards.format import ShardLayout
from preprocess.shards.patch import Dropped, Patch, PatchRef
from preprocess.simulation import (
    NUM_REGIONS,
    PATCHES_PER_SCENE,
    SEASONS,
    SIDE_PATCHES,
    Scene,
    make_land,
    observe,
)
from preprocess.sources.base import Source
from preprocess.sources.l2a import SCL, Products
from preprocess.sources.safe import METADATA_NAME, QUANTIFICATION, safe_l2a
from preprocess.sources.simulated import MARKER, NOTICE, Simulated, is_complete, settle
from preprocess.tiling import PATCH_SIDE_M, place_name

_VERSION = 1  # another number means other pixels for the same seed
_TILE_M = 109_800
_XML = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<!-- {notice} -->
<n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE></Product_Info>
<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE>{quantification}</BOA_QUANTIFICATION_VALUE>
</QUANTIFICATION_VALUES_LIST>{offsets}</n1:General_Info>
<n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>0.0</Cloud_Coverage_Assessment>
</n1:Quality_Indicators_Info></n1:Level-2A_User_Product>
"""
_NUM_OFFSETS = 13  # ESA counts B10 too
# 8-bit maps and 16-bit bands alike: without these GDAL would compress them lossily
_LOSSLESS = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}

Scenes = list[Scene]
Pieces = dict[tuple[int, int], npt.NDArray[Any]]  # by column and row of a region's first square


@dataclass(frozen=True, slots=True)
class SimulatedSafe:
    """The source ``simulated`` in the form of products."""

    config: SimulatedConfig

    @property
    def simulated(self) -> bool:
        """Never measured."""
        return True

    def layout(self) -> ShardLayout:
        """Return the layout of L2A products."""
        return self._products().layout()

    def discover(self) -> Iterator[PatchRef | Dropped]:
        """Write the products unless they are there, then yield their squares with data."""
        write_products(self.config)
        # by place, as the simulated ground has them: dates of one place share their split
        splits = {
            place: scene.split
            for scenes in scenes_by_product(self.config).values()
            for scene in scenes
            for place in places_of(scene)
        }
        for item in self._products().discover():
            if isinstance(item, PatchRef):
                tile = item.id.split("_T")[1][:5]
                place = place_name(tile, *map(int, item.id.rsplit("_", 2)[1:]))
                yield replace(item, split=splits[place])

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one square as any product's."""
        return self._products().read(ref, layout)

    def _products(self) -> Products:
        # regions also lie where tiles overlap; no other tile is simulated there
        select = SelectConfig(one_owner=False)
        return safe_l2a(
            SafeL2AConfig(root=self.config.root, bands=self.config.bands, select=select)
        )


def simulated(config: SimulatedConfig) -> Source:
    """Return the source ``simulated`` in the form asked for."""
    return SimulatedSafe(config) if config.form == SimulatedForm.safe else Simulated(config)


def write_products(config: SimulatedConfig) -> None:
    """Write SAFE folders of all tiles and dates; finished or begun ones are completed.

    Raises:
        ValueError: more patches than there is ground for, or the root holds anything else.
    """
    root, products = Path(config.root), scenes_by_product(config)
    settings = {
        "notice": NOTICE,
        "version": _VERSION,
        "form": str(config.form),
        **{key: getattr(config, key) for key in ("num_patches", "num_dates", "baseline", "seed")},
    }
    if is_complete(root, settings):
        return
    write_json(root / MARKER, {**settings, "complete": False})
    with progress_of(len(products), "simulate products") as advance:
        for name, scenes in products.items():
            if not (root / f"{name}.SAFE").is_dir():
                _write_product(root / f"{name}.SAFE", scenes, config)
            advance(1)
    write_json(root / MARKER, {**settings, "complete": True})


def scenes_by_product(config: SimulatedConfig) -> dict[str, Scenes]:
    """Return the scenes that each product holds; every region is seen on every date.

    Raises:
        ValueError: more patches than there is ground for.
    """
    num_regions = -(-config.num_patches // (PATCHES_PER_SCENE * config.num_dates))
    if num_regions > NUM_REGIONS:
        most = NUM_REGIONS * PATCHES_PER_SCENE * config.num_dates
        raise ValueError(
            f"source.num_patches is {config.num_patches}; on {config.num_dates} dates there is "
            f"ground for {most} patches"
        )
    products: dict[str, Scenes] = {}
    # all dates of a region before the next one: fewer patches are a part of more
    for region in range(num_regions):
        for date in range(config.num_dates):
            year, season = divmod(date, len(SEASONS))
            scene = Scene(region, season, year)
            products.setdefault(_name(scene, config.baseline), []).append(scene)
    return products


def places_of(scene: Scene) -> list[str]:
    """Return the names of the squares of a scene's region."""
    column, row = scene.corner
    squares = np.ndindex(SIDE_PATCHES, SIDE_PATCHES)
    return [place_name(scene.tile.name, column + east, row + south) for east, south in squares]


def _name(scene: Scene, baseline: str) -> str:
    stamp = _stamp(scene)
    return f"SIM_MSIL2A_{stamp}_N{baseline.replace('.', '')}_R000_T{scene.tile.name}_{stamp}"


def _stamp(scene: Scene) -> str:
    day, _, clock = scene.tile.stamps[scene.season]
    return f"{2017 + scene.year}{day}T{clock}"


def _write_product(folder: Path, scenes: Scenes, config: SimulatedConfig) -> None:
    """Write one product, whole or not at all."""
    temporary = temporary_path(folder)
    tile, stamp = scenes[0].tile, _stamp(scenes[0])
    granule = f"L2A_T{tile.name}_A000000_{stamp}"
    images = temporary / "GRANULE" / granule / "IMG_DATA"
    for band, (size_m, pieces) in _pieces(scenes, config).items():
        path = images / f"R{size_m}m" / f"T{tile.name}_{stamp}_{band}_{size_m}m.jp2"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_tile(path, tile, size_m, pieces)
    (temporary / METADATA_NAME).write_text(_metadata(config.baseline), encoding="utf-8")
    settle(temporary, folder)


def _pieces(scenes: Scenes, config: SimulatedConfig) -> dict[str, tuple[int, Pieces]]:
    """Return ground resolution and pixels by square of every band and of the classification."""
    # what ESA adds is what must be taken out, with the other sign
    raised = -(offset_of(config.baseline) or 0)
    groups = native_groups(L2A_BANDS)
    sizes_m = {**{band: BANDS[band].ground_resolution_m for band in L2A_BANDS}, "SCL": 20}
    pieces: dict[str, tuple[int, Pieces]] = {band: (size, {}) for band, size in sizes_m.items()}
    for scene in scenes:
        land = make_land(config.seed, scene.region)
        pixels = observe(config.seed, scene, land)
        for group, bands in groups.items():
            for band, values in zip(bands, pixels[group], strict=True):
                pieces[band][1][scene.corner] = values + np.uint16(raised)
        # every second pixel: 20 m from the land's 10 m, and classes have no mean
        pieces["SCL"][1][scene.corner] = _classes(land.cover[::2, ::2])
    return pieces


def _classes(cover: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Return the scene classification of a land-cover map: water, or else vegetation."""
    wet = [number for number, name in enumerate(CLASSES) if name.startswith(("Water", "Sea"))]
    water, vegetation = (SCL.classes.index(name) for name in ("water", "vegetation"))
    return np.where(np.isin(cover, wet), water, vegetation).astype(np.uint8)


def _write_tile(path: Path, tile: Tile, size_m: int, pieces: Pieces) -> None:
    side, square = _TILE_M // size_m, PATCH_SIDE_M // size_m
    dtype = next(iter(pieces.values())).dtype
    whole = np.zeros((1, side, side), dtype)  # 241 MB at 10 m; the rest of a tile is nodata
    for (column, row), pixels in pieces.items():
        y, x = row * square, column * square
        whole[0, y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    transform = (float(size_m), 0.0, float(tile.x), 0.0, -float(size_m), float(tile.y))
    write_raster(path, whole, transform, tile.epsg, **_LOSSLESS)


def _metadata(baseline: str) -> str:
    offset = offset_of(baseline)
    node = '<BOA_ADD_OFFSET band_id="{}">{}</BOA_ADD_OFFSET>'
    offsets = "".join(node.format(n, offset) for n in range(_NUM_OFFSETS)) if offset else ""
    return _XML.format(
        notice=NOTICE, baseline=baseline, quantification=QUANTIFICATION, offsets=offsets
    )
