"""Tables of ids, classes and splits: CSV or parquet comes in, rows by id go out."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from preprocess.shards.format import LabelSet
from preprocess.shards.patch import Labels

Row = tuple[str, tuple[str, ...]]  # split and classes
_SPLITS = {
    "": "",
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_SEPARATOR = ";"


class LabelTable:
    """Splits and classes by id.

    Attributes:
        label_set: of the classes; None for a table of splits alone.
    """

    def __init__(self, name: str, rows: dict[str, Row]) -> None:
        self._rows = rows
        classes = sorted({entry for _, names in rows.values() for entry in names})
        # by what the table holds: a table of one class each answers by softmax, others by sigmoid
        several = any(len(names) > 1 for _, names in rows.values())
        kind = "multi" if several else "single"
        self.label_set = LabelSet(name, kind, tuple(classes)) if classes else None

    def __contains__(self, patch_id: str) -> bool:
        """Say whether a patch is listed."""
        return self._row(patch_id) is not None

    def of(self, patch_id: str) -> tuple[str, Labels]:
        """Return split and labels of a patch; an unlisted one has neither."""
        split, classes = self._row(patch_id) or ("", ())
        named = self.label_set is not None and bool(classes)
        return split, {self.label_set.name: classes} if named and self.label_set else {}

    def _row(self, patch_id: str) -> Row | None:
        # whole names only: never a part of one
        return self._rows.get(patch_id) or self._rows.get(PurePosixPath(patch_id).name)


def read_label_table(
    path: Path, label_set: str, id_column: str, label_column: str, split_column: str
) -> LabelTable:
    """Read a table; a column without a name is not read.

    Raises:
        ValueError: it cannot be read, lacks a column, names a patch twice, or a split that is none.
    """
    rows: dict[str, Row] = {}
    for name, classes, split in read_rows(path, [id_column, label_column, split_column]):
        patch_id = _without_suffix(str(name))
        if patch_id in rows:
            raise ValueError(f"{path} names {name} twice; leave one line")
        if (split or "") not in _SPLITS:
            raise ValueError(f"{path}: the split of {name} is {split!r}, not {', '.join(_SPLITS)}")
        rows[patch_id] = (_SPLITS[split or ""], _names(classes))
    return LabelTable(label_set, rows)


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
        raise ValueError(
            f"{path.name} needs pyarrow: pip install 'simclr-s2[bigearthnet]'"
        ) from error
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
    # numbers are names too; an empty cell is no class
    parts = value.split(_SEPARATOR) if isinstance(value, str) else value or ()
    parts = parts if isinstance(parts, list | tuple) else [parts]
    return tuple(dict.fromkeys(name for part in parts if (name := str(part).strip())))


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.strip().rpartition(".")
    return stem if dot and suffix.lower() in ("tif", "tiff") else name.strip()
