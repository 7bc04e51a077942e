"""The sources ``safe_l2a`` and ``cog_l2a``: discovery and description of L2A products.

SAFE names follow the Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD). A folder of
COGs is described by its STAC item, if there is one: whether the offset was removed depends on the
collection and the date of processing, so nothing is inferred from the archive's name. Links of
items are not used: their paths have another layout than the files.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from preprocess.bands import BANDS, L2A_BANDS, canonical_name
from preprocess.config import ProductsConfig, require
from preprocess.radiometry import QUANTIFICATION, baseline_of, offset_of
from preprocess.raster import IN_ZIP
from preprocess.sources.base import (
    GEOTIFF_SUFFIXES,
    PRODUCT,
    Groups,
    files_below,
    folder_of,
    is_passed_over,
    iso_time,
    patch_groups,
)
from preprocess.sources.l2a import Product, Products

METADATA_NAME = "MTD_MSIL2A.xml"
_RASTER = re.compile(r"_(?P<band>B\d[\dA]|SCL)_(?P<resolution>10|20|60)m\.(?:jp2|tif)$")
# S2A_29RKH_20200219_0_L2A: satellite, tile without a leading zero, day, sequence, level
_ITEM = re.compile(r"S2[A-D]_(?P<tile>\d{1,2}[A-Z]{3})_(?P<day>\d{8})_\d+_L2A")
_ORIGINAL = re.compile(r"_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}_T(?P<tile>\d{2}[A-Z]{3})_")
_PRODUCT_KEYS = ("sentinel:product_id", "s2:product_uri", "s2:product_id")
_APPLIED_KEYS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")

Item = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class SafeL2AConfig(ProductsConfig):
    """Sentinel-2 L2A products as ESA delivers them: SAFE folders, or those in a zip file.

    Attributes:
        root: a SAFE folder, or a folder with any number of them, or of zips, at any depth.
        resolution_m: 0 reads every band at its native ground resolution; 20 or 60 reads all bands
            as ESA resampled them to it.
    """

    kind: str = "safe_l2a"
    resolution_m: int = 0

    def __post_init__(self) -> None:
        ProductsConfig.__post_init__(self)
        require(
            self.resolution_m in (0, 20, 60),
            f"source.resolution_m is {self.resolution_m}; give 0 (native), 20 or 60",
        )


def safe_l2a(config: SafeL2AConfig) -> Products:
    """Return the source ``safe_l2a``."""
    # ESA delivers B08 at 10 m only; B8A replaces it at 20 and 60 m
    held = [band for band in L2A_BANDS if not (config.resolution_m and band == "B08")]
    groups = patch_groups(config.bands, held, resolution_m=config.resolution_m)
    return Products(config, groups, find_products, describe_product)


def find_products(root: Path) -> list[str]:
    """Return the paths of all products under a root, or of the root; ``ValueError`` if none."""
    folder_of(str(root))
    if _name_of(root.absolute().name):
        return [f"../{root.absolute().name}"]
    # products are not entered: each has hundreds of files, an archive millions
    found = [
        name if folder == "." else f"{folder}/{name}"
        for folder, names in files_below(root, _is_product)
        for name in names
        if _is_product(name)
    ]
    if not found:
        raise ValueError(
            f"no L2A product in {root}; expected folders or zip files such as "
            "S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454.SAFE"
        )
    return sorted(found)


def _is_product(name: str) -> bool:
    known = PurePosixPath(name).suffix in ("", ".SAFE", ".zip")  # no checksums, other archives
    return known and _name_of(name) is not None


def _name_of(name: str) -> re.Match[str] | None:
    found = PRODUCT.match(name)
    return found if found and found["level"] == "L2A" else None


@lru_cache(maxsize=256)  # else described again for every patch
def describe_product(root: Path, path: str, groups: Groups) -> Product:
    """Return a product from its name, its metadata and its file names."""
    # root / "../NAME" would be beside the target of a root that is a link
    product = root.absolute() if path.startswith("../") else root / path
    name = _name_of(product.name)
    if name is None:
        raise ValueError(f"{product} is not named as an L2A product")
    names = list_files(product)
    # braces tell GDAL where the name of the zip ends, which it would otherwise have to guess
    base = Path(f"{IN_ZIP}{{{product.absolute()}}}") if product.is_file() else product
    # rasters by band and ground resolution in metres
    found = ((_RASTER.search(file), base / file) for file in names)
    rasters = {(at["band"], int(at["resolution"])): raster for at, raster in found if at}
    coarsest: dict[str, Path] = {}
    for (band, _), raster in sorted(rasters.items(), key=lambda entry: -entry[0][1]):
        if band != "SCL":
            coarsest.setdefault(band, raster)
    sizes_m = [(band, int(group.ground_resolution_m)) for group in groups for band in group.bands]
    claims, cloud_percent = _read_metadata(product, names)
    baseline = baseline_of(name[0])
    # ESA computes the map at 20 m; the one at 60 m is a copy
    scl_m = max((size for band, size in rasters if band == "SCL" and size <= 20), default=60)
    return Product(
        path=path,
        name=name[0],
        tile=name["tile"],
        acquired=iso_time(name["acquired"]),
        baseline=baseline,
        bands={key[0]: rasters[key] for key in sizes_m if key in rasters},
        coarsest=coarsest,
        scl=rasters.get(("SCL", scl_m)),
        scl_m=scl_m,
        claims={"xml": claims, "name": offset_of(baseline)},
        cloud_percent=cloud_percent,
    )


def list_files(product: Path) -> list[str]:
    """Return the relative paths of all files in a product."""
    if product.is_dir():
        return [f"{folder}/{name}" for folder, names in files_below(product) for name in names]
    try:
        with zipfile.ZipFile(product) as archive:
            inside = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{product} cannot be read as a zip ({error}); fetch it again") from error
    # a zip made on macOS has a hidden file beside every file
    files = [name for name in inside if not name.endswith("/")]
    return [name for name in files if not any(map(is_passed_over, PurePosixPath(name).parts))]


def offset_in(root: ElementTree.Element) -> int:
    """Return the offset stated in a product's XML, the same for all bands; 0 if there is none.

    Up to baseline 03.01 there is no such node; from 04.00 on there is one for each of the 13 bands
    of the instrument, including B10. Different offsets or another unit raise ``ValueError``.
    """
    # by name without namespace: the nodes have none, and schema namespaces vary by baseline
    values = {int(node.text or "") for node in root.iter("BOA_ADD_OFFSET")}
    if len(values) > 1:
        raise ValueError(f"bands have different offsets {sorted(values)}, which no shard can hold")
    quantification = root.findtext(".//BOA_QUANTIFICATION_VALUE", "10000")
    if float(quantification) != QUANTIFICATION:
        raise ValueError(f"BOA_QUANTIFICATION_VALUE is {quantification}, not {QUANTIFICATION}")
    return values.pop() if values else 0


def _read_metadata(product: Path, names: list[str]) -> tuple[int | None, float | None]:
    """Return offset and cloud cover in percent; None for each that the metadata lack."""
    name = next((name for name in names if PurePosixPath(name).name == METADATA_NAME), None)
    if name is None:
        return None, None
    base = product if product.is_dir() else zipfile.Path(product)
    try:
        root = ElementTree.fromstring((base / name).read_bytes())
        cloud = root.findtext(".//Cloud_Coverage_Assessment")
        return offset_in(root), float(cloud) if cloud else None
    except (ElementTree.ParseError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{product / name} is not the metadata of a product ({error})") from error


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


def cog_l2a(config: CogL2AConfig) -> Products:
    """Return the source ``cog_l2a``."""
    groups = patch_groups(config.bands, factor=config.decimation)
    describe = partial(describe_item, decimation=config.decimation)
    return Products(config, groups, find_items, describe)


def find_items(root: Path) -> list[str]:
    """Return the folders of all scenes under a root, or the root; ``ValueError`` if none."""
    whole = folder_of(str(root)).absolute()
    if _names_scene(whole.name):
        return [f"../{whole.name}"]
    scenes = ((f, names) for f, names in files_below(whole) if _names_scene(Path(f).name))
    found = [folder for folder, names in scenes if any(map(_band_in, names))]
    if not found:
        raise ValueError(
            f"no scene in {root}; expected folders such as S2A_29RKH_20200219_0_L2A with rasters "
            "named B02.tif or blue.tif"
        )
    return sorted(found)


@lru_cache(maxsize=256)  # else described again for every patch
def describe_item(root: Path, path: str, groups: Groups, decimation: int = 1) -> Product:
    """Return a scene's product from its STAC item, else from its name."""
    folder = root.absolute() if path.startswith("../") else root / path
    name = folder.name
    item = _read_item(folder, name)
    properties = item.get("properties", {})
    product = product_of(name, properties)
    baseline = baseline_in(product, properties)
    tile, acquired = _tile_and_time(name, product, properties)
    rasters: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if (band := _band_in(file.name)) and rasters.setdefault(band, file) != file:
            raise ValueError(f"{folder} holds {band} twice: {rasters[band].name} and {file.name}")
    scl = rasters.pop("SCL", None)
    cloud = properties.get("eo:cloud_cover")  # percent
    return Product(
        path=path,
        name=name,
        tile=tile,
        acquired=acquired,
        baseline=baseline,
        bands={band: rasters[band] for g in groups for band in g.bands if band in rasters},
        coarsest=dict(sorted(rasters.items(), key=lambda r: -BANDS[r[0]].ground_resolution_m)),
        scl=scl,
        scl_m=20 * decimation,
        claims=claims_of(item, baseline),
        cloud_percent=None if cloud is None else float(cloud),
    )


def claims_of(item: Item, baseline: str) -> dict[str, int | None]:
    """Return the offsets still to be added according to item and baseline.

    Entries of an item may contradict each other; each is a claim.
    """
    properties, assets = item.get("properties", {}), item.get("assets", {})
    by_name = offset_of(baseline)
    applied = next((properties[key] for key in _APPLIED_KEYS if key in properties), None)
    by_flag = 0 if applied else by_name
    red = assets.get("red") or assets.get("B04") or {}
    stated = [band["offset"] for band in red.get("raster:bands", []) if "offset" in band]
    return {
        "stac:boa_offset_applied": None if applied is None else by_flag,
        # stated in reflectance: -0.1
        "stac:raster:bands": round(stated[0] * QUANTIFICATION) if stated else None,
        # The name describes ESA's delivery. From 04.00 on, the archive may have removed the offset
        # since then; before 04.00 there was never one.
        "name": 0 if by_name == 0 else None,
    }


def product_of(name: str, properties: Item) -> str:
    """Return the ESA product name stated in an item, else the item's name, followed by ``_``."""
    stated = next((str(properties[key]) for key in _PRODUCT_KEYS if properties.get(key)), "")
    # trailing _: a name may end where the pattern expects the next part
    return (stated or name).removesuffix(".SAFE") + "_"


def baseline_in(product: str, properties: Item) -> str:
    """Return the baseline in a product's name, else the one stated in an item, or ""."""
    stated = str(properties.get("s2:processing_baseline", ""))
    # some catalogues write 4.0 for 04.00; what is no number leaves the baseline open
    is_number = re.fullmatch(r"\d{1,2}\.\d{1,2}", stated)
    return baseline_of(product) or (f"{float(stated):05.2f}" if is_number else "")


def _tile_and_time(name: str, product: str, properties: Item) -> tuple[str, str]:
    original, item = _ORIGINAL.search(product), _ITEM.search(name)
    if original and item and original["tile"] != item["tile"].zfill(5):
        raise ValueError(f"{name}: its STAC item is of {product[:-1]}; put its own in its place")
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
    """Return the time of acquisition stated in an item, in ISO 8601; empty if there is none."""
    # fractions of a second differ between archives of the same acquisition
    return re.sub(r"(\.\d+)?(Z|\+00:00)$", "Z", str(properties.get("datetime") or ""))


def _names_scene(name: str) -> bool:
    return bool(_ITEM.search(name) or _ORIGINAL.search(name + "_"))


def _band_in(name: str) -> str:
    """Return the canonical band or ``SCL`` from a raster's name; empty if it is neither."""
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
    """Return the STAC item of a folder: its only JSON, or the one named after it; else empty."""
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
