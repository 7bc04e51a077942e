"""The source ``cog_l2a``: cloud-optimised GeoTIFFs of L2A scenes, one a band (Earth Search).

A folder of rasters named after bands or STAC assets is a scene. Its STAC item, if it lies beside
them, tells product, time, cloud cover and whether the offset has been taken out; this has differed
between collections and dates of processing, so nothing is concluded from the archive's name. The
item's links are not used: they follow another layout of paths than the files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from preprocess.bands import BANDS, canonical_name
from preprocess.config import ProductsConfig, require
from preprocess.radiometry import DARK_BANDS, QUANTIFICATION, baseline_of, offset_of
from preprocess.sources.base import (
    GEOTIFF_SUFFIXES,
    Groups,
    files_below,
    folder_of,
    is_passed_over,
    iso_time,
    patch_groups,
)
from preprocess.sources.l2a import Product, Products

# S2A_29RKH_20200219_0_L2A: satellite, tile without a leading zero, day, sequence, level
_ITEM = re.compile(r"S2[A-D]_(?P<tile>\d{1,2}[A-Z]{3})_(?P<day>\d{8})_\d+_L2A")
_PRODUCT = re.compile(r"_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}_T(?P<tile>\d{2}[A-Z]{3})_")
_PRODUCT_KEYS = ("sentinel:product_id", "s2:product_uri", "s2:product_id")
_APPLIED_KEYS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")


@dataclass(kw_only=True, slots=True)
class CogL2AConfig(ProductsConfig):
    """Sentinel-2 L2A as cloud-optimised GeoTIFFs, one a band, in a folder a scene (Earth Search).

    Attributes:
        root: folder with any number of scenes at any depth.
        decimation: by how much the publisher coarsened every band; 1 in the archive itself.
    """

    kind: str = "cog_l2a"
    decimation: int = 1

    def __post_init__(self) -> None:
        ProductsConfig.__post_init__(self)
        require(
            self.decimation in (1, 2, 5, 10),
            f"source.decimation is {self.decimation}; give 1, 2, 5 or 10",
        )


Item = dict[str, Any]


def cog_l2a(config: CogL2AConfig) -> Products:
    """Return the source ``cog_l2a``."""
    groups = patch_groups(config.bands, factor=config.decimation)
    describe = partial(describe_item, decimation=config.decimation)
    return Products(config, groups, find_items, describe)


def find_items(root: Path) -> list[str]:
    """Return the folders of all scenes under a root, or the root itself.

    Raises:
        ValueError: there is none.
    """
    whole = folder_of(str(root)).absolute()
    if _names_scene(whole.name):
        return [f"../{whole.name}"]
    found = [
        folder
        for folder, names in files_below(whole)
        if _names_scene(Path(folder).name) and any(_band_in(name) for name in names)
    ]
    if not found:
        raise ValueError(
            f"no scene in {root}; expected folders such as S2A_29RKH_20200219_0_L2A with rasters "
            "named B02.tif or blue.tif"
        )
    return sorted(found)


@lru_cache(maxsize=256)  # else looked at anew for every patch
def describe_item(root: Path, path: str, groups: Groups, decimation: int = 1) -> Product:
    """Return what is known of a scene: from its STAC item, else its name.

    Raises:
        ValueError: the item is not readable, or neither item nor name tell tile and day.
    """
    folder = root / path
    name = folder.name
    item = _read_item(folder, name)
    properties = item.get("properties", {})
    product = product_of(name, properties)
    baseline = baseline_of(product) or str(properties.get("s2:processing_baseline", ""))
    tile, acquired = _tile_and_time(name, product, properties)
    files = sorted(folder.iterdir())
    rasters = {band: file for file in files if (band := _band_in(file.name))}
    sizes_m = {band: BANDS[band].ground_resolution_m for band in rasters if band != "SCL"}
    cloud = properties.get("eo:cloud_cover")  # percent
    return Product(
        path=path,
        name=name,
        tile=tile,
        acquired=acquired,
        baseline=baseline,
        bands={band: rasters[band] for g in groups for band in g.bands if band in rasters},
        outline=rasters[max(sizes_m, key=sizes_m.__getitem__)] if sizes_m else None,
        dark={band: rasters[band] for band in DARK_BANDS if band in rasters},
        scl=rasters.get("SCL"),
        scl_m=20 * decimation,
        claims=claims_of(item, baseline),
        cloud_percent=None if cloud is None else float(cloud),
    )


def claims_of(item: Item, baseline: str) -> dict[str, int | None]:
    """Return what item and baseline say of the offset that is left to be added.

    Two entries of an item may contradict each other; both are claims then.
    """
    properties, assets = item.get("properties", {}), item.get("assets", {})
    by_name = offset_of(baseline)
    applied = next((properties[key] for key in _APPLIED_KEYS if key in properties), None)
    by_flag = 0 if applied else by_name
    red = assets.get("red") or assets.get("B04") or {}
    stated = [band["offset"] for band in red.get("raster:bands", []) if "offset" in band]
    return {
        "stac:boa_offset_applied": None if applied is None else by_flag,
        # in reflectance: -0.1
        "stac:raster:bands": round(stated[0] * QUANTIFICATION) if stated else None,
        # A name tells what ESA delivered. From 04.00 on the archive may have taken the offset out
        # since; before there was never one.
        "name": 0 if by_name == 0 else None,
    }


def product_of(name: str, properties: Item) -> str:
    """Return the name of ESA's product that an item states, else its own, with ``_`` behind it."""
    stated = next((str(properties[key]) for key in _PRODUCT_KEYS if properties.get(key)), "")
    # trailing: a name may end where the pattern expects its next part
    return (stated or name).removesuffix(".SAFE") + "_"


def _tile_and_time(name: str, product: str, properties: Item) -> tuple[str, str]:
    original, item = _PRODUCT.search(product), _ITEM.search(name)
    if original:
        return original["tile"], stated_time(properties) or iso_time(original["time"])
    if item:
        day = item["day"]
        return item["tile"].zfill(5), stated_time(properties) or f"{day[:4]}-{day[4:6]}-{day[6:]}"
    raise ValueError(
        f"{name}: neither the folder's name nor a STAC item states tile and day; name the folder "
        "after the item, S2A_29RKH_20200219_0_L2A for example"
    )


def stated_time(properties: Item) -> str:
    """Return the time of acquisition that an item states, ISO 8601; empty if it states none."""
    # fractions of a second differ between archives of the same acquisition
    return re.sub(r"\.\d+Z$", "Z", str(properties.get("datetime") or ""))


def _names_scene(name: str) -> bool:
    return bool(_ITEM.search(name) or _PRODUCT.search(name + "_"))


def _band_in(name: str) -> str:
    """Return the canonical band, or ``SCL``, of a raster's name; empty if it is neither."""
    stem, dot, suffix = name.partition(".")
    if dot + suffix not in GEOTIFF_SUFFIXES:
        return ""
    if stem.upper() == "SCL":
        return "SCL"
    try:
        return canonical_name(stem)
    except ValueError:
        return ""


def _read_item(folder: Path, name: str) -> Item:
    """Return the STAC item of a folder: the JSON named after it, or the only one; else nothing."""
    found = sorted(path for path in folder.glob("*.json") if not is_passed_over(path.name))
    path = folder / f"{name}.json" if len(found) > 1 else next(iter(found), None)
    if path is None or not path.is_file():
        return {}
    try:
        item = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(item, dict) or item.get("type") != "Feature":
        raise ValueError(f"{path} is not a STAC item; take it out of the folder")
    return item
