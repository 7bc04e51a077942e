"""Tables of ids, classes and splits in CSV or parquet, for sources whose files hold no labels."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from preprocess.shards.format import Labels, LabelSet
from preprocess.sources.base import nfc

Row = tuple[str, tuple[str, ...]]  # split and classes
_SPLITS = {
    "": "",
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_SEPARATOR = ";"
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_log = logging.getLogger(__name__)


class LabelTable:
    """Splits and classes by id.

    Attributes:
        label_set: of the classes; None for a table of splits alone.
    """

    def __init__(self, path: Path, name: str, rows: dict[str, Row], repeated: int = 0) -> None:
        self._path = path
        self._rows = rows
        self._repeated = repeated
        classes = sorted({entry for _, names in rows.values() for entry in names})
        # by what the table holds: a table of one class each answers by softmax, others by sigmoid
        several = any(len(names) > 1 for _, names in rows.values())
        kind = "multi" if several else "single"
        self.label_set = LabelSet(name, kind, tuple(classes)) if classes else None

    def match(self, patches: Sequence[str]) -> None:
        """Compare the table with the ids that there are; log how many it does not list.

        Raises:
            ValueError: it lists none of them, or one line of it is meant for two.
        """
        missing, owners = 0, dict[str, str]()
        for patch in patches:
            key = self._key(patch)
            if key is None:
                missing += 1
            elif key in owners:
                raise ValueError(
                    f"{self._path} lists {key}, which are {owners[key]} and {patch}; list them by "
                    "their whole ids"
                )
            else:
                owners[key] = patch
        if not owners:
            raise ValueError(
                f"none of the {len(patches)} patches is listed in {self._path}; its ids should "
                f"look like {patches[0]}"
            )
        unused = len(self._rows) - len(owners)
        if missing or unused or self._repeated:
            message = (
                "%s: %d of %d patches are not listed, %d lines name no patch that is there, %d "
                "repeat another line"
            )
            _log.warning(message, self._path, missing, len(patches), unused, self._repeated)

    def of(self, patch_id: str) -> tuple[str, Labels]:
        """Return split and labels of a patch; an unlisted one has neither."""
        key = self._key(patch_id)
        split, classes = ("", ()) if key is None else self._rows[key]
        if self.label_set is None or not classes:
            return split, {}
        return split, {self.label_set.name: classes}

    def _key(self, patch_id: str) -> str | None:
        # whole names only: never a part of one
        last = PurePosixPath(patch_id).name
        return next((key for key in (patch_id, last) if key in self._rows), None)


def read_label_table(
    path: Path, label_set: str, id_column: str, label_column: str, split_column: str
) -> LabelTable:
    """Read a table; a column without a name is not read.

    Raises:
        ValueError: it cannot be read, lacks a column, names a patch twice, or a split that is none.
    """
    rows: dict[str, Row] = {}
    repeated = 0
    for name, classes, split in read_rows(path, [id_column, label_column, split_column]):
        patch_id, part = _without_suffix(_text(name)), _text(split)
        if not patch_id:
            continue  # the blank line that spreadsheets leave at the end
        if part not in _SPLITS:
            named = ", ".join(name for name in _SPLITS if name)
            raise ValueError(f"{path}: the split of {name} is {split!r}; give {named}, or leave it")
        row = (_SPLITS[part], _names(classes))
        repeated += patch_id in rows
        if rows.setdefault(patch_id, row) != row:
            raise ValueError(f"{path} lists {name} twice, and differently; leave one line")
    if all(_NUMBER.fullmatch(name) for _, names in rows.values() for name in names):
        rows = {patch_id: _without_point(row) for patch_id, row in rows.items()}
    return LabelTable(path, label_set, rows, repeated)


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield some columns of a table, row by row; a column without a name is None in every row.

    Raises:
        ValueError: the file is missing or no such table, or lacks a column.
    """
    if not path.is_file():
        raise ValueError(f"the table {path} is missing")
    read = _read_parquet if path.suffix == ".parquet" else _read_csv
    # only these: a table may have a hundred columns
    named = [column for column in columns if column]
    try:
        for row in read(path, named):
            yield tuple(row[column] if column else None for column in columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the table {path} cannot be read ({error})") from error


def parquet_file(path: Path, **options: Any) -> Any:
    """Open a parquet file.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        from pyarrow.parquet import ParquetFile  # an extra: only such tables need it
    except ImportError as error:
        raise ValueError(f"{path.name} needs pyarrow: pip install pyarrow") from error
    return ParquetFile(path, **options)


def _read_csv(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    # utf-8-sig: spreadsheets put a mark before the first column's name
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(path, columns, list(reader.fieldnames or []))
        yield from reader


def _read_parquet(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        file = parquet_file(path)
        _check_columns(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except OSError:
        raise
    except ValueError as error:  # pyarrow's own errors are ValueErrors too, without the path
        raise ValueError(f"the table {path} cannot be used ({error})") from error


def _check_columns(path: Path, wanted: list[str], held: list[str]) -> None:
    missing = [column for column in wanted if column not in held]
    if missing:
        raise ValueError(
            f"the table {path} has no column {missing[0]!r}; it has {', '.join(held)}: set "
            "source.id_column, source.label_column and source.split_column"
        )


def _names(value: Any) -> tuple[str, ...]:
    """Return the classes of a cell: text parted by semicolons, a list, or one number or truth."""
    if isinstance(value, str):
        parts: Sequence[Any] = value.split(_SEPARATOR)
    else:
        parts = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(name for part in parts if (name := _text(part))))


def _text(value: Any) -> str:
    """Return a cell as text; only None, NaN, "nan" and blank text are empty: 0 is a class."""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")  # parquet of writers that mark no UTF-8
    if isinstance(value, float | Decimal):
        # pandas turns a column of whole numbers into floats where one is missing
        value = int(value) if float(value).is_integer() else value
    text = nfc("" if value is None else str(value).strip())
    return "" if text.lower() == "nan" else text


def _without_point(row: Row) -> Row:
    """Return a row with the classes 0 and 1 for 0.0 and 1.0, as pandas writes them into CSV."""
    return row[0], tuple(re.sub(r"\.0+$", "", name) for name in row[1])


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.strip().rpartition(".")
    return stem if dot and suffix.lower() in ("tif", "tiff") else name.strip()
