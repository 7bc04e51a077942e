"""The tables of BigEarthNet v2: half a million rows come in, those of one product at a time go out.

As Python objects the rows take 400 MB; as columns of the table, of which only the rows of one
product are ever turned into objects, they take a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.labels import labels_of_19
from preprocess.patch import Labels
from preprocess.sources.tables import parquet_file

COLUMNS = ["patch_id", "split", "labels"]
V1_NAME = "s2v1_name"
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
