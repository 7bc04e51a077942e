"""The source ``bigearthnet_v1``: a flat tree of patch folders, and what v2 and simulation share.

The format is described in Sumbul et al., "BigEarthNet: A Large-Scale Benchmark Archive for Remote
Sensing Image Understanding" (IGARSS 2019) and in the archive's own documentation.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.config import SourceConfig
from preprocess.grid import Grid
from preprocess.labels import BIGEARTHNET19, BIGEARTHNET43, EXTENDED, REGULAR, labels_of_43
from preprocess.radiometry import baseline_of
from preprocess.shards.format import Labels, Patch, PatchError, PatchRef, ShardLayout
from preprocess.sources.base import (
    Exclusions,
    Groups,
    Source,
    folder_of,
    names_in,
    patch_groups,
    read_groups,
    read_splits,
)
from preprocess.tiling import square_name

_log = logging.getLogger(__name__)


def read_band_files(folder: Path, groups: Groups) -> tuple[dict[str, npt.NDArray[np.uint16]], Grid]:
    """Read pixels and grid of ``<folder>/<folder name>_<band>.tif`` for every band.

    Files are opened by name: side files in the folder must not count as bands.

    Raises:
        PatchError: as ``read_groups``; or tags of the files say that an offset is due.
    """
    paths = {band: folder / f"{folder.name}_{band}.tif" for g in groups for band in g.bands}
    pixels, grid, tagged = read_groups(paths, groups)
    if tagged:
        raise PatchError(folder, f"tags of its files say that the offset {tagged} is due")
    return pixels, grid


def place_of(tile: str, patch_id: str) -> str:
    """Return the ground cell: tile, column and row, the same in v1, v2 and on every date."""
    column, row = patch_id.rsplit("_", 2)[1:]
    # as numbers: v1 writes 4_55 where v2 writes 04_55
    return square_name(tile, int(column), int(row))


TREE = "BigEarthNet-v1.0"
# A tenth of the archive has times of five digits, from which a zero was lost somewhere inside:
# they identify, but are no clock times.
_PATCH = re.compile(r"(?:S2[ABC]|SIM)_MSIL2A_\d{8}T\d{5,6}_(?P<column>\d{1,2})_(?P<row>\d{1,2})")
# By pattern, not by position: the short times move everything behind them.
_TILE = re.compile(r"_T(\d{2}[A-Z]{3})_")


@dataclass(kw_only=True, slots=True)
class BigEarthNetV1Config(SourceConfig):
    """BigEarthNet v1: a flat tree of patch folders with one GeoTIFF a band and a JSON of labels.

    Attributes:
        root: ``BigEarthNet-v1.0`` or the folder that holds it.
        train_list: file with one patch name a line (csv or csv.gz): the train split, if given.
        validation_list: the same for validation.
        test_list: the same for test.
        exclude_lists: files naming patches to leave out (snow, cloud, no label).
    """

    kind: str = "bigearthnet_v1"
    train_list: str = ""
    validation_list: str = ""
    test_list: str = ""
    exclude_lists: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BigEarthNetV1(Source):
    """The source ``bigearthnet_v1``."""

    config: BigEarthNetV1Config

    def layout(self) -> ShardLayout:
        """Return native band groups and the four labellings."""
        return layout_of(self.config.bands)

    def discover(self) -> Iterator[PatchRef]:
        """Yield the patch folders, with splits from the lists and without the excluded."""
        config = self.config
        splits = read_splits(
            {
                "train": config.train_list,
                "validation": config.validation_list,
                "test": config.test_list,
            }
        )
        excluded = Exclusions(config.exclude_lists)
        names = [name for name in patch_folders(Path(config.root)) if name.startswith("S2")]
        if not names:
            raise ValueError(_nothing_found(Path(config.root)))
        for name in names:
            if name not in excluded:
                yield PatchRef(name, name, splits.get(name, ""))
        excluded.log_unused()
        if splits:
            unlisted = sum(name not in splits for name in names)
            absent = len(splits.keys() - set(names))
            message = "%s: %d of %d patches are on no list, %d listed ones are not there"
            _log.info(message, config.root, unlisted, len(names), absent)

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read band files and labels of one folder."""
        return read_patch(tree_of(Path(self.config.root)), ref, layout)


def layout_of(bands: list[str]) -> ShardLayout:
    """Return the layout of a v1 tree for a choice of bands; an empty choice means all."""
    return ShardLayout(patch_groups(bands), (BIGEARTHNET43, BIGEARTHNET19, REGULAR, EXTENDED))


def tree_of(root: Path) -> Path:
    """Return the folder with the patch folders: the root, or the tree's usual name in it."""
    return root / TREE if (root / TREE).is_dir() else root


def patch_folders(root: Path) -> list[str]:
    """Return the sorted names of all patch folders.

    Raises:
        ValueError: the root is not a folder.
    """
    tree = tree_of(folder_of(str(root)))
    return [name for name in names_in(tree) if _PATCH.fullmatch(name)]


def read_patch(tree: Path, ref: PatchRef, layout: ShardLayout) -> Patch:
    """Read one patch folder of a v1 tree.

    Raises:
        PatchError: a band file or the JSON is missing, unreadable or contradicts the format.
    """
    folder = tree / ref.path
    pixels, grid = read_band_files(folder, layout.groups)
    path = folder / f"{folder.name}_labels_metadata.json"
    metadata = _read_json(path)
    # an L1C product: the authors ran sen2cor themselves, so no L2A name and no offset exists
    product = metadata["tile_source"]
    tile = _TILE.search(product)
    return Patch(
        id=ref.id,
        pixels=pixels,
        labels=_labels(path, metadata["labels"]),
        product=product,
        tile=tile[1] if tile else "",
        place=place_of(tile[1], ref.id) if tile else "",
        # from the JSON: the time in the name may have lost a digit
        acquired=_acquired(path, metadata["acquisition_date"]),
        split=ref.split,
        baseline=baseline_of(product),
        epsg=grid.epsg,
        crs_wkt=grid.crs.wkt,
        transform=grid.transform,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PatchError(path, "missing") from None
    except ValueError as error:
        raise PatchError(path, f"not readable JSON ({error})") from error
    expected = {"labels": list, "tile_source": str, "acquisition_date": str}
    for key, kind in expected.items():
        if not isinstance(metadata, dict) or not isinstance(metadata.get(key), kind):
            raise PatchError(path, f"key {key!r} is missing or of another type")
    return dict(metadata)


def _labels(path: Path, names: list[str]) -> Labels:
    try:
        return labels_of_43(names)
    except ValueError as error:
        raise PatchError(path, str(error)) from error


def _acquired(path: Path, text: str) -> str:
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").isoformat() + "Z"
    except ValueError as error:
        raise PatchError(path, f"acquisition_date is {text!r}, not a date and a time") from error


def _nothing_found(root: Path) -> str:
    simulated = patch_folders(root)[:1]
    if simulated:
        return f"{root} holds simulated patches ({simulated[0]}); pack them with source=simulated"
    return (
        f"no patch folder in {tree_of(root)}; expected names such as "
        "S2A_MSIL2A_20170613T101031_87_48; point source.root at BigEarthNet-v1.0"
    )
