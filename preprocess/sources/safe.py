"""The source ``safe_l2a``: Sentinel-2 L2A products as ESA delivers them, SAFE folders or zips.

Layout and names follow the Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD): rasters
lie in ``GRANULE/*/IMG_DATA/R10m|R20m|R60m``, each band at its native and at coarser resolutions,
10,980, 5,490 and 1,830 pixels a side, without a nodata tag: 0 is no data, 65535 saturated.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from preprocess.bands import L2A_BANDS
from preprocess.config import ProductsConfig, require
from preprocess.radiometry import DARK_BANDS, QUANTIFICATION, baseline_of, offset_of
from preprocess.raster import IN_ZIP
from preprocess.sources.base import (
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


@dataclass(kw_only=True, slots=True)
class SafeL2AConfig(ProductsConfig):
    """Sentinel-2 L2A products as ESA delivers them: SAFE folders, or those in a zip file.

    Attributes:
        root: a SAFE folder, a zip, or a folder with any number of them at any depth.
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
    # ESA delivers B08 at 10 m only; B8A takes its place at 20 and 60 m
    held = [band for band in L2A_BANDS if not (config.resolution_m and band == "B08")]
    groups = patch_groups(config.bands, held, resolution_m=config.resolution_m)
    return Products(config, groups, find_products, describe_product)


def find_products(root: Path) -> list[str]:
    """Return the paths of all products under a root, or of the root itself.

    Raises:
        ValueError: there is none.
    """
    folder_of(str(root))
    if _name_of(root.absolute().name):
        return [f"../{root.absolute().name}"]
    # not entered: a product holds hundreds of files, a whole archive millions
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
    known = PurePosixPath(name).suffix in ("", ".SAFE", ".zip")  # not those of checksums, archives
    return known and _name_of(name) is not None


def _name_of(name: str) -> re.Match[str] | None:
    found = PRODUCT.match(name)
    return found if found and found["level"] == "L2A" else None


@lru_cache(maxsize=256)  # else looked at anew for every patch
def describe_product(root: Path, path: str, groups: Groups) -> Product:
    """Return what is known of a product: from its name, its metadata and the names of its files.

    Raises:
        ValueError: product or metadata are not readable, or name several offsets.
    """
    product = root / path
    name = _name_of(product.name)
    if name is None:
        raise ValueError(f"{product} is not named as an L2A product")
    names = list_files(product)
    # braces: the name of the zip ends where GDAL would otherwise have to try
    base = Path(f"{IN_ZIP}{{{product.absolute()}}}") if product.is_file() else product
    # every raster by band and ground resolution in metres
    rasters = {
        (found["band"], int(found["resolution"])): base / file
        for file in names
        if (found := _RASTER.search(file))
    }
    coarsest: dict[str, Path] = {}
    for (band, _), raster in sorted(rasters.items(), key=lambda entry: -entry[0][1]):
        coarsest.setdefault(band, raster)
    sizes_m = [(band, int(group.ground_resolution_m)) for group in groups for band in group.bands]
    claims, cloud_percent = _read_metadata(product, names)
    baseline = baseline_of(name[0])
    # 20 m is where ESA makes it; the 60 m one is a copy
    scl_m = max((size for band, size in rasters if band == "SCL" and size <= 20), default=60)
    return Product(
        path=path,
        name=name[0],
        tile=name["tile"],
        acquired=iso_time(name["acquired"]),
        baseline=baseline,
        bands={key[0]: rasters[key] for key in sizes_m if key in rasters},
        outline=next((raster for band, raster in coarsest.items() if band != "SCL"), None),
        dark={band: coarsest[band] for band in DARK_BANDS if band in coarsest},
        scl=rasters.get(("SCL", scl_m)),
        scl_m=scl_m,
        claims={"xml": claims, "name": offset_of(baseline)},
        cloud_percent=cloud_percent,
    )


def list_files(product: Path) -> list[str]:
    """Return the names of all files in a product, relative to it.

    Raises:
        ValueError: it is a zip that cannot be read.
    """
    if product.is_dir():
        return [f"{folder}/{name}" for folder, names in files_below(product) for name in names]
    try:
        with zipfile.ZipFile(product) as archive:
            inside = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{product} cannot be read as a zip ({error}); fetch it again") from error
    # an archive made on macOS has a hidden file beside every file
    return [
        name
        for name in inside
        if not name.endswith("/") and not any(map(is_passed_over, PurePosixPath(name).parts))
    ]


def offset_in(root: ElementTree.Element) -> int:
    """Return the offset that a product's XML states: that of all bands, or 0 if it names none.

    Up to baseline 03.01 there is no such node; from 04.00 on there is one for each of the 13 bands
    of the instrument, B10 counted.

    Raises:
        ValueError: bands have different offsets, or the quantification value is not 10000.
    """
    # searched by local name: the namespaces of the schema changed between baselines
    values = {int(node.text or "") for node in root.iter("BOA_ADD_OFFSET")}
    if len(values) > 1:
        raise ValueError(f"bands have different offsets {sorted(values)}, which no shard can hold")
    quantification = root.findtext(".//BOA_QUANTIFICATION_VALUE", "10000")
    if float(quantification) != QUANTIFICATION:
        raise ValueError(f"BOA_QUANTIFICATION_VALUE is {quantification}, not {QUANTIFICATION}")
    return values.pop() if values else 0


def _read_metadata(product: Path, names: list[str]) -> tuple[int | None, float | None]:
    """Return offset and cloud cover in percent; None for what no metadata tells."""
    name = next((name for name in names if PurePosixPath(name).name == METADATA_NAME), None)
    if name is None:
        return None, None
    if product.is_dir():
        content = (product / name).read_bytes()
    else:
        with zipfile.ZipFile(product) as archive:
            content = archive.read(name)
    try:
        root = ElementTree.fromstring(content)
        cloud = root.findtext(".//Cloud_Coverage_Assessment")
        return offset_in(root), float(cloud) if cloud else None
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{product / name} is not the metadata of a product ({error})") from error
