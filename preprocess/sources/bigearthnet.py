"""The sources ``bigearthnet_v1`` and ``bigearthnet_v2``, and the reader of v1 patch folders.

v1 is a flat tree of patch folders with labels in JSON (Sumbul et al., IGARSS 2019); v2 (refined)
has product folders and labels in parquet tables (Clasen et al., IGARSS 2025).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
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
    Groups,
    Source,
    folder_of,
    iso_time,
    misfit,
    patch_groups,
    read_groups,
    read_splits,
)
from preprocess.sources.labels import (
    BIGEARTHNET19,
    BIGEARTHNET43,
    CORINE,
    EXTENDED,
    IRRIGATION,
    REGULAR,
    labels_of_19,
    labels_of_43,
    labels_of_shares,
    parquet_file,
    shares_of_codes,
    split_named,
)
from preprocess.tiling import square_name

V1_TREE, V2_TREE = "BigEarthNet-v1.0", "BigEarthNet-S2"
COLUMNS = ["patch_id", "split", "labels"]  # required in the tables of v2
V1_NAME = "s2v1_name"
# A tenth of v1 has times of five digits, which lost a zero somewhere inside: they are
# identifiers, but not clock times.
_V1_PATCH = re.compile(r"(?:S2[ABC]|SIM)_MSIL2A_\d{8}T\d{5,6}_\d{1,2}_\d{1,2}")
_V1_TILE = re.compile(r"_T(\d{2}[A-Z]{3})_")  # not by position: short times shift what follows
_V2_PATCH = re.compile(
    r"(?P<product>S2[ABC]_MSIL2A_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}"
    r"_T(?P<tile>\d{2}[A-Z]{3}))_\d{2}_\d{2}"
)
(_MAP,) = patch_groups(["B02"])  # reference maps have pixels of 10 m
_SQUARE = len("_26_57")  # suffix of a v2 patch name after its product name

Row = tuple[str, Labels, str]  # table row of a v2 patch: split, labels, name in v1
_log = logging.getLogger(__name__)
_labels_of_19 = cache(labels_of_19)  # half a million rows hold a few thousand combinations


def _read_bands(folder: Path, groups: Groups) -> tuple[dict[str, npt.NDArray[np.uint16]], Grid]:
    # exact names: side files in the folder must not count as bands
    paths = {band: folder / f"{folder.name}_{band}.tif" for g in groups for band in g.bands}
    pixels, grid, tagged = read_groups(paths, groups)
    if tagged:
        raise PatchError(folder, f"tags of its files say that the offset {tagged} is due")
    return pixels, grid


def _place_of(tile: str, patch_id: str) -> str:
    """Return the ground cell (tile, column, row), the same in v1, in v2 and on every date."""
    # as integers: v1 writes 4_55 where v2 writes 04_55
    return square_name(tile, *map(int, patch_id.rsplit("_", 2)[1:]))


@dataclass(frozen=True, slots=True)
class V1Tree(Source):
    """Reader of a tree in the layout of v1, measured or simulated."""

    config: SourceConfig

    def layout(self) -> ShardLayout:
        """Return native band groups and the four label sets."""
        label_sets = (BIGEARTHNET43, BIGEARTHNET19, REGULAR, EXTENDED)
        return ShardLayout(patch_groups(self.config.bands), label_sets)

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the band files and labels of one folder."""
        folder = self.tree() / ref.path
        pixels, grid = _read_bands(folder, layout.groups)
        path = folder / f"{folder.name}_labels_metadata.json"
        metadata = _read_json(path)
        # an L1C product: the authors ran sen2cor themselves, so there is no L2A name or offset
        product = metadata["tile_source"]
        tile = _V1_TILE.search(product)
        stamp = metadata["acquisition_date"]  # the time in the name may lack a digit
        try:
            labels = labels_of_43(metadata["labels"])
        except ValueError as error:
            raise PatchError(path, str(error)) from error
        try:
            acquired = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S").isoformat() + "Z"
        except ValueError as error:
            reason = f"acquisition_date is {stamp!r}, not a date and a time"
            raise PatchError(path, reason) from error
        return Patch(
            id=ref.id,
            pixels=pixels,
            labels=labels,
            product=product,
            tile=tile[1] if tile else "",
            place=_place_of(tile[1], ref.id) if tile else "",
            acquired=acquired,
            split=ref.split,
            baseline=baseline_of(product),
            epsg=grid.epsg,
            crs_wkt=grid.crs.wkt,
            transform=grid.transform,
        )

    def tree(self) -> Path:
        """Return the folder of patch folders: ``BigEarthNet-v1.0`` in the root, else the root."""
        root = Path(self.config.root)
        return root / V1_TREE if (root / V1_TREE).is_dir() else root


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
class BigEarthNetV1(V1Tree):
    """The source ``bigearthnet_v1``."""

    config: BigEarthNetV1Config

    def discover(self) -> Iterator[PatchRef]:
        """Yield the patch folders except excluded ones, with splits from the lists."""
        config = self.config
        lists = (config.train_list, config.validation_list, config.test_list)
        splits = read_splits(dict(zip(("train", "validation", "test"), lists, strict=True)))
        excluded = Exclusions(config.exclude_lists)
        folder_of(config.root)
        found = [name for name in _names_in(self.tree(), "S") if _V1_PATCH.fullmatch(name)]
        names = [name for name in found if name.startswith("S2")]
        if not names:
            raise ValueError(
                f"{config.root} holds simulated patches ({found[0]}); pack them with "
                "source=simulated"
                if found
                else f"no patch folder in {self.tree()}; expected names such as "
                "S2A_MSIL2A_20170613T101031_87_48; point source.root at BigEarthNet-v1.0"
            )
        unlisted = sum(name not in splits for name in names)
        require(
            not splits or unlisted < len(names),
            f"none of the {len(names)} patches in {config.root} is on the lists of splits; they "
            f"should hold names such as {names[0]}",
        )
        for name in names:
            if name not in excluded:
                yield PatchRef(name, name, splits.get(name, ""))
        excluded.log_unused()
        if splits:
            absent = len(splits.keys() - set(names))
            message = "%s: %d of %d patches are on no list, %d listed ones are not there"
            _log.info(message, config.root, unlisted, len(names), absent)


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


class _Table:
    """A table of v2: its columns in Arrow memory, and the positions of each product's rows."""

    def __init__(self, path: Path, with_v1_names: bool) -> None:
        try:
            schema = parquet_file(path).schema
            leaves = [schema.column(number).path for number in range(len(schema))]
            held = {leaf.split(".")[0] for leaf in leaves}
            missing = [name for name in COLUMNS if name not in held]
            if missing:
                raise ValueError(f"it has no column {missing[0]}")
            # the v1 names of patches add 40 MB of text
            wanted = [*COLUMNS, V1_NAME] if with_v1_names and V1_NAME in held else COLUMNS
            # dictionary-encoded: 19 class names and 3 splits instead of two million strings
            coded = [leaf for leaf in leaves if leaf.split(".")[0] in ("labels", "split")]
            # without threads, each of which would hold its own columns
            file = parquet_file(path, read_dictionary=coded)
            self._columns = file.read(columns=wanted, use_threads=False)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"the table {path} cannot be used ({error})") from error
        import pyarrow.compute as pc  # an extra; parquet_file has already required it

        ids = self._columns["patch_id"]
        products = pc.utf8_slice_codeunits(ids, start=0, stop=-_SQUARE).combine_chunks()
        encoded = products.dictionary_encode()
        codes = encoded.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
        names = encoded.dictionary.to_pylist()
        self._positions = {names[codes[part[0]]]: part for part in parts}

    def of_product(self, product: str) -> dict[str, Row]:
        """Return a product's rows by patch; ``ValueError`` for an unknown class or split."""
        positions = self._positions.get(product)
        rows = [] if positions is None else self._columns.take(positions).to_pylist()
        return {
            row["patch_id"]: (
                split_named(row["split"], row["patch_id"]),
                _labels_of_19(tuple(row["labels"])) if row["labels"] else {},
                row.get(V1_NAME) or "",
            )
            for row in rows
        }


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
        """Return native band groups and the 19 classes; with maps also CORINE and irrigation."""
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
        """Yield listed patch folders except excluded ones, with splits and labels from tables."""
        root, config = Path(self.config.root), self.config
        products = _names_in(folder_of(config.root) / V2_TREE, "S2")
        excluded = Exclusions(config.exclude_lists)
        # report a wrong root as such, not as a missing table
        paths = [root / name for name in config.tables] if products else []
        tables = [_Table(path, bool(excluded)) for path in paths]
        num_found = num_listed = 0
        for product in sorted(products, key=lambda name: name + "_"):  # in order of patch names
            held = _names_in(root / V2_TREE / product, product)
            names = [name for name in held if _V2_PATCH.fullmatch(name)]
            rows: dict[str, Row] = {}
            for table in tables:  # if several tables list a patch, the last one counts
                rows |= table.of_product(product)
            listed = [name for name in names if name in rows]
            num_found, num_listed = num_found + len(names), num_listed + len(listed)
            for name in listed:
                split, labels, v1_name = rows[name]
                # by ground too: a place is excluded on all its dates
                tile = name.rsplit("_", 3)[1].removeprefix("T")
                known_as = (name, v1_name, _place_of(tile, name)) if excluded else ()
                if excluded.isdisjoint(known_as):
                    yield PatchRef(name, f"{product}/{name}", split, labels)
        excluded.log_unused()
        _check_found(root, config, num_found, num_listed)

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the band files of one folder."""
        folder = Path(self.config.root) / V2_TREE / ref.path
        name = _V2_PATCH.fullmatch(ref.id)
        if name is None:
            raise PatchError(folder, "is not named as a patch of BigEarthNet v2")
        pixels, grid = _read_bands(folder, layout.groups)
        fractions = self._fractions(ref, grid)
        labels = labels_of_shares(fractions, self.config.min_irrigated) if fractions else {}
        return Patch(
            id=ref.id,
            pixels=pixels,
            labels={**ref.labels, **labels},
            fractions=fractions,
            product=name["product"],
            tile=name["tile"],
            place=_place_of(name["tile"], ref.id),
            acquired=iso_time(name["time"]),
            split=ref.split,
            # 99.99 means reprocessed by the archive's authors, without an offset
            baseline=baseline_of(ref.id),
            epsg=grid.epsg,
            crs_wkt=grid.crs.wkt,
            transform=grid.transform,
        )

    @property
    def _maps(self) -> Path:
        return Path(self.config.root) / self.config.reference_maps

    def _fractions(self, ref: PatchRef, grid: Grid) -> Fractions:
        """Return the ground shares from a patch's map; empty if it has no map."""
        path = self._maps / ref.path / f"{ref.id}_reference_map.tif"
        if not path.is_file():
            return {}  # unknown, as opposed to not irrigated
        found = read_raster(path)
        if fault := misfit(found, _MAP, grid):  # the patch may be of 20 or 60 m bands alone
            raise PatchError(path, fault)
        try:
            return shares_of_codes(found.pixels)
        except ValueError as error:
            raise PatchError(path, str(error)) from error


def _names_in(folder: Path, prefix: str) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:  # without the type of each, which would take minutes
        return sorted(entry.name for entry in entries if entry.name.startswith(prefix))


def _check_found(root: Path, config: BigEarthNetV2Config, num_found: int, num_listed: int) -> None:
    if not num_found:
        raise ValueError(
            f"no patch folder in {root / V2_TREE}; expected <product>/<product>_<column>_<row>; "
            f"point source.root at the folder that holds {V2_TREE}"
        )
    if not num_listed:
        raise ValueError(
            f"none of the {num_found} patches in {root / V2_TREE} is listed in "
            f"{', '.join(config.tables)}"
        )
    if num_listed < num_found:
        message = "%s: %d of %d patches are left out, as no table lists them (%s)"
        _log.info(message, root, num_found - num_listed, num_found, ", ".join(config.tables))
