"""BigEarthNet v2 (refined): product folders and parquet tables come in, labelled patches go out.

The format is described in Clasen et al., "reBEN: Refined BigEarthNet Dataset for Remote Sensing
Image Analysis" (IGARSS 2025).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from preprocess.config import BigEarthNetV2Config
from preprocess.labels import BIGEARTHNET19, labels_of_19
from preprocess.patch import Labels, Patch, PatchError, PatchRef
from preprocess.shards.layout import ShardLayout
from preprocess.sources.bigearthnet_files import band_groups, place_of, read_band_files

TREE = "BigEarthNet-S2"
COLUMNS = ["patch_id", "split", "labels"]
_PATCH = re.compile(
    r"(?P<product>S2[ABC]_MSIL2A_(?P<time>\d{8}T\d{6})_N(?P<baseline>\d{4})_R\d{3}"
    r"_T(?P<tile>\d{2}[A-Z]{3}))_\d{2}_\d{2}"
)

Row = tuple[str, Labels]


@dataclass(frozen=True, slots=True)
class BigEarthNetV2:
    """The source ``bigearthnet_v2``."""

    config: BigEarthNetV2Config

    @property
    def simulated(self) -> bool:
        """Measured by Sentinel-2."""
        return False

    def layout(self) -> ShardLayout:
        """Return native band groups and the 19 classes; the tables tell no others."""
        return ShardLayout(band_groups(self.config.bands), (BIGEARTHNET19,))

    def discover(self) -> Iterator[PatchRef]:
        """Yield the patch folders that a table lists, with its split and labels."""
        root = Path(self.config.root)
        names = _patch_folders(root)
        rows: dict[str, Row] = {}
        for table in self.config.tables:
            rows.update(read_table(root / table, names))
        if not rows:
            raise ValueError(
                f"none of the {len(names)} patches in {root / TREE} is listed in "
                f"{', '.join(self.config.tables)}"
            )
        for name in sorted(rows):
            split, labels = rows[name]
            yield PatchRef(name, f"{_product(name)}/{name}", split, labels)

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the band files of one folder."""
        folder = Path(self.config.root) / TREE / ref.path
        name = _PATCH.fullmatch(ref.id)
        if name is None:
            raise PatchError(folder, "is not named as a patch of BigEarthNet v2")
        pixels, transform, epsg = read_band_files(folder, layout.groups)
        return Patch(
            id=ref.id,
            pixels=pixels,
            labels=ref.labels,
            product=name["product"],
            tile=name["tile"],
            place=place_of(name["tile"], ref.id),
            acquired=datetime.strptime(name["time"], "%Y%m%dT%H%M%S").isoformat() + "Z",
            split=ref.split,
            # 99.99 marks a reprocessing by the archive's authors, which adds no offset
            baseline=f"{name['baseline'][:2]}.{name['baseline'][2:]}",
            epsg=epsg,
            transform=transform,
        )


def _patch_folders(root: Path) -> set[str]:
    """Return the names of all patch folders."""
    if not root.is_dir():
        raise ValueError(f"source.root is {str(root)!r}, which is not a folder")
    names = {
        folder.name
        for folder in (root / TREE).glob("S2*/S2*")
        if _PATCH.fullmatch(folder.name) and folder.parent.name == _product(folder.name)
    }
    if not names:
        raise ValueError(
            f"no patch folder in {root / TREE}: sought <product>/<product>_<column>_<row>; "
            f"point source.root at the folder that holds {TREE}"
        )
    return names


def read_table(path: Path, wanted: set[str]) -> dict[str, Row]:
    """Return split and labels of the wanted patches that a table lists.

    Raises:
        ValueError: pyarrow is not installed, the table is missing, unreadable or lacks a column,
            or it names a class that is not one of the 19.
    """
    try:
        from pyarrow import ArrowException  # an extra: only this table needs it
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            "the tables of BigEarthNet v2 need pyarrow: pip install 'simclr-s2[bigearthnet]'"
        ) from error
    rows: dict[str, Row] = {}
    try:
        for batch in ParquetFile(path).iter_batches(columns=COLUMNS):
            columns = [batch.column(name).to_pylist() for name in COLUMNS]
            for name, split, classes in zip(*columns, strict=True):
                if name in wanted:
                    rows[name] = (split or "", _labels(tuple(classes or ())))
    except (OSError, KeyError, ValueError, ArrowException) as error:
        raise ValueError(f"the table {path} cannot be used ({error})") from error
    return rows


def _product(name: str) -> str:
    return name.rsplit("_", 2)[0]


@cache
def _labels(classes: tuple[str, ...]) -> Labels:
    # shared between patches: half a million rows hold a few thousand combinations
    return labels_of_19(classes) if classes else {}
