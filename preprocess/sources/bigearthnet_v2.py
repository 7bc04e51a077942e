"""The source ``bigearthnet_v2`` (refined): product folders with labels in parquet tables.

The format is described in Clasen et al., "reBEN: Refined BigEarthNet Dataset for Remote Sensing
Image Analysis" (IGARSS 2025).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.config import SourceConfig, require
from preprocess.grid import Grid
from preprocess.radiometry import baseline_of
from preprocess.raster import read_raster
from preprocess.shards.format import Fractions, Labels, Patch, PatchError, PatchRef, ShardLayout
from preprocess.sources.base import (
    Exclusions,
    Source,
    folder_of,
    iso_time,
    names_in,
    patch_groups,
)
from preprocess.sources.bigearthnet import place_of, read_band_files
from preprocess.sources.labels import (
    BIGEARTHNET19,
    CORINE,
    EXTENDED,
    IRRIGATION,
    REGULAR,
    labels_of_19,
    labels_of_shares,
    parquet_file,
    shares_of_codes,
)

COLUMNS = ["patch_id", "split", "labels"]
V1_NAME = "s2v1_name"
_log = logging.getLogger(__name__)
_SQUARE = len("_26_57")  # what a patch's name has behind that of its product


@dataclass(frozen=True, slots=True)
class Row:
    """What a table says of one patch."""

    split: str
    labels: Labels
    v1_name: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        columns: an Arrow table of ``COLUMNS`` and, if asked for, ``V1_NAME``.
        rows: positions in it by product.
    """

    columns: Any
    rows: dict[str, npt.NDArray[np.intp]]

    def of_product(self, product: str) -> dict[str, Row]:
        """Return the rows of one product by patch.

        Raises:
            ValueError: a class is not one of the 19.
        """
        positions = self.rows.get(product)
        if positions is None:
            return {}
        return {
            row["patch_id"]: Row(
                row["split"] or "", _labels(tuple(row["labels"] or ())), row.get(V1_NAME) or ""
            )
            for row in self.columns.take(positions).to_pylist()
        }


def read_table(path: Path, with_v1_names: bool = False) -> Table:
    """Read a parquet table.

    Args:
        path: of the table.
        with_v1_names: read the names that patches have in v1 too, 40 MB of text.

    Raises:
        ValueError: pyarrow is not installed, or the table is missing, unreadable or lacks a column.
    """
    wanted = [*COLUMNS, V1_NAME] if with_v1_names else COLUMNS
    try:
        columns = _read_columns(path, wanted)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"the table {path} cannot be used ({error})") from error
    return Table(columns, _positions(columns["patch_id"]))


def _read_columns(path: Path, wanted: list[str]) -> Any:
    schema = parquet_file(path).schema
    leaves = [schema.column(number).path for number in range(len(schema))]
    held = {leaf.split(".")[0] for leaf in leaves}
    missing = [name for name in COLUMNS if name not in held]
    if missing:
        raise ValueError(f"it has no column {missing[0]}")
    # as codes: 19 class names and 3 splits instead of two million texts
    coded = [leaf for leaf in leaves if leaf.split(".")[0] in ("labels", "split")]
    # threads would each hold columns of their own
    return parquet_file(path, read_dictionary=coded).read(
        columns=[name for name in wanted if name in held], use_threads=False
    )


def _positions(ids: Any) -> dict[str, npt.NDArray[np.intp]]:
    import pyarrow.compute as pc  # an extra, without which no table has been read

    products = pc.utf8_slice_codeunits(ids, start=0, stop=-_SQUARE).combine_chunks()
    encoded = products.dictionary_encode()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    bounds = np.flatnonzero(np.diff(codes[order])) + 1
    parts = np.split(order, bounds) if len(order) else []
    names = encoded.dictionary.to_pylist()
    return {names[codes[part[0]]]: part for part in parts}


@cache
def _labels(classes: tuple[str, ...]) -> Labels:
    # shared between patches: half a million rows hold a few thousand combinations
    return labels_of_19(classes) if classes else {}


TREE = "BigEarthNet-S2"
_PATCH = re.compile(
    r"(?P<product>S2[ABC]_MSIL2A_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}"
    r"_T(?P<tile>\d{2}[A-Z]{3}))_\d{2}_\d{2}"
)


@dataclass(kw_only=True, slots=True)
class BigEarthNetV2Config(SourceConfig):
    """BigEarthNet v2 (refined): product folders of patch folders; labels and splits in parquet.

    Attributes:
        root: the folder that holds ``BigEarthNet-S2`` and the tables.
        tables: parquet tables, absolute or relative to the root. Only patches that a table lists
            are packed; the official second table adds those with snow, cloud or shadow.
        reference_maps: folder of CORINE maps, absolute or relative to the root. Where it is there,
            shards hold the share of every level-3 class and the irrigation labels.
        min_irrigated: a patch is irrigated if more than this share of its ground is.
        exclude_lists: files naming patches to leave out: ids, places (``33UUP_26_57``) or the names
            that the same patches have in v1.
    """

    kind: str = "bigearthnet_v2"
    tables: list[str] = field(default_factory=lambda: ["metadata.parquet"])
    reference_maps: str = "Reference_Maps"
    min_irrigated: float = 0.0
    exclude_lists: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        require(bool(self.tables), "source.tables is empty; name metadata.parquet")
        require(
            0 <= self.min_irrigated < 1,
            f"source.min_irrigated is {self.min_irrigated}; give a share from 0 to below 1",
        )


@dataclass(frozen=True, slots=True)
class BigEarthNetV2(Source):
    """The source ``bigearthnet_v2``."""

    config: BigEarthNetV2Config

    def layout(self) -> ShardLayout:
        """Return native band groups and the 19 classes; with maps CORINE shares and irrigation."""
        groups = patch_groups(self.config.bands)
        if not self._maps.is_dir():
            require(
                not self.config.min_irrigated,
                f"source.min_irrigated is {self.config.min_irrigated}, but there are no maps in "
                f"{self._maps}; give their folder: source.reference_maps=DIR",
            )
            return ShardLayout(groups, (BIGEARTHNET19,))
        return ShardLayout(groups, (BIGEARTHNET19, REGULAR, EXTENDED), (CORINE, IRRIGATION))

    def discover(self) -> Iterator[PatchRef]:
        """Yield the patch folders that a table lists and no list excludes, with what it tells."""
        root, config = Path(self.config.root), self.config
        products = _product_folders(root)
        excluded = Exclusions(config.exclude_lists)
        tables = [read_table(root / name, bool(excluded)) for name in config.tables]
        num_found = num_listed = 0
        for product in products:
            names = _patch_folders(root / TREE / product)
            # of a patch that several tables list, the last one counts
            rows = {
                name: row for table in tables for name, row in table.of_product(product).items()
            }
            listed = [name for name in names if name in rows]
            num_found, num_listed = num_found + len(names), num_listed + len(listed)
            for name in listed:
                if not _is_excluded(name, rows[name], excluded):
                    yield PatchRef(name, f"{product}/{name}", rows[name].split, rows[name].labels)
        excluded.log_unused()
        _check_found(root, config, num_found, num_listed)

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the band files of one folder."""
        folder = Path(self.config.root) / TREE / ref.path
        name = _PATCH.fullmatch(ref.id)
        if name is None:
            raise PatchError(folder, "is not named as a patch of BigEarthNet v2")
        pixels, grid = read_band_files(folder, layout.groups)
        fractions = self._fractions(ref, grid)
        labels = labels_of_shares(fractions, self.config.min_irrigated) if fractions else {}
        return Patch(
            id=ref.id,
            pixels=pixels,
            labels={**ref.labels, **labels},
            fractions=fractions,
            product=name["product"],
            tile=name["tile"],
            place=place_of(name["tile"], ref.id),
            acquired=iso_time(name["time"]),
            split=ref.split,
            # 99.99 marks a reprocessing by the archive's authors, which adds no offset
            baseline=baseline_of(ref.id),
            epsg=grid.epsg,
            crs_wkt=grid.crs.wkt,
            transform=grid.transform,
        )

    @property
    def _maps(self) -> Path:
        return Path(self.config.root) / self.config.reference_maps

    def _fractions(self, ref: PatchRef, grid: Grid) -> Fractions:
        """Return the shares that a patch's map tells; none where it has no map."""
        path = self._maps / ref.path / f"{ref.id}_reference_map.tif"
        if not path.is_file():
            return {}  # unknown, which is another thing than no irrigation
        found = read_raster(path)
        if (found.grid.transform, found.grid.crs) != (grid.transform, grid.crs):
            where = f"{found.grid.crs} {found.grid.transform}"
            raise PatchError(path, f"lies at {where}, its patch at {grid.crs} {grid.transform}")
        try:
            return shares_of_codes(found.pixels)
        except ValueError as error:
            raise PatchError(path, str(error)) from error


def _product_folders(root: Path) -> list[str]:
    """Return the names of all product folders, in the order that their patches' names have."""
    tree = folder_of(str(root)) / TREE
    names = [name for name in names_in(tree) if name.startswith("S2")] if tree.is_dir() else []
    if not names:
        raise ValueError(_nothing_in(tree))
    return sorted(names, key=lambda name: name + "_")


def _patch_folders(product: Path) -> list[str]:
    names = names_in(product) if product.is_dir() else []
    return [name for name in names if name.startswith(product.name) and _PATCH.fullmatch(name)]


def _is_excluded(name: str, row: Row, excluded: Set[str]) -> bool:
    if not excluded:
        return False
    # by ground too: a place that is held out is held out on all its dates
    tile = name.rsplit("_", 3)[1].removeprefix("T")
    return not excluded.isdisjoint((name, row.v1_name, place_of(tile, name)))


def _check_found(root: Path, config: BigEarthNetV2Config, num_found: int, num_listed: int) -> None:
    if not num_found:
        raise ValueError(_nothing_in(root / TREE))
    if not num_listed:
        raise ValueError(
            f"none of the {num_found} patches in {root / TREE} is listed in "
            f"{', '.join(config.tables)}"
        )
    if num_listed < num_found:
        message = "%s: %d of %d patches are left out, as no table lists them (%s)"
        _log.info(message, root, num_found - num_listed, num_found, ", ".join(config.tables))


def _nothing_in(tree: Path) -> str:
    return (
        f"no patch folder in {tree}; expected <product>/<product>_<column>_<row>; point "
        f"source.root at the folder that holds {TREE}"
    )
