"""Labels of patches: CORINE land cover with BigEarthNet's names, and tables of classes and splits.

Classes are in BigEarthNet's own order (by CORINE code). Others use alphabetical order, so class
names are always stored with the data, and mapping is by name.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.shards.format import Fractions, FractionSet, Labels, LabelSet
from preprocess.sources.base import nfc, without_suffix

_AGRICULTURE = (
    "Land principally occupied by agriculture, with significant areas of natural vegetation"
)
# One row per class of the 43: CORINE level-3 code, name, and name among the 19 (empty: dropped).
# CORINE has a 44th class, 335 (glaciers and perpetual snow), which BigEarthNet never uses.
_CLASSES: tuple[tuple[int, str, str], ...] = (
    (111, "Continuous urban fabric", "Urban fabric"),
    (112, "Discontinuous urban fabric", "Urban fabric"),
    (121, "Industrial or commercial units", "Industrial or commercial units"),
    (122, "Road and rail networks and associated land", ""),
    (123, "Port areas", ""),
    (124, "Airports", ""),
    (131, "Mineral extraction sites", ""),
    (132, "Dump sites", ""),
    (133, "Construction sites", ""),
    (141, "Green urban areas", ""),
    (142, "Sport and leisure facilities", ""),
    (211, "Non-irrigated arable land", "Arable land"),
    (212, "Permanently irrigated land", "Arable land"),
    (213, "Rice fields", "Arable land"),
    (221, "Vineyards", "Permanent crops"),
    (222, "Fruit trees and berry plantations", "Permanent crops"),
    (223, "Olive groves", "Permanent crops"),
    (231, "Pastures", "Pastures"),
    (241, "Annual crops associated with permanent crops", "Permanent crops"),
    (242, "Complex cultivation patterns", "Complex cultivation patterns"),
    (243, _AGRICULTURE, _AGRICULTURE),
    (244, "Agro-forestry areas", "Agro-forestry areas"),
    (311, "Broad-leaved forest", "Broad-leaved forest"),
    (312, "Coniferous forest", "Coniferous forest"),
    (313, "Mixed forest", "Mixed forest"),
    (321, "Natural grassland", "Natural grassland and sparsely vegetated areas"),
    (322, "Moors and heathland", "Moors, heathland and sclerophyllous vegetation"),
    (323, "Sclerophyllous vegetation", "Moors, heathland and sclerophyllous vegetation"),
    (324, "Transitional woodland/shrub", "Transitional woodland, shrub"),
    (331, "Beaches, dunes, sands", "Beaches, dunes, sands"),
    (332, "Bare rock", ""),
    (333, "Sparsely vegetated areas", "Natural grassland and sparsely vegetated areas"),
    (334, "Burnt areas", ""),
    (411, "Inland marshes", "Inland wetlands"),
    (412, "Peatbogs", "Inland wetlands"),
    (421, "Salt marshes", "Coastal wetlands"),
    (422, "Salines", "Coastal wetlands"),
    (423, "Intertidal flats", ""),
    (511, "Water courses", "Inland waters"),
    (512, "Water bodies", "Inland waters"),
    (521, "Coastal lagoons", "Marine waters"),
    (522, "Estuaries", "Marine waters"),
    (523, "Sea and ocean", "Marine waters"),
)

CLC_CODES = {name: code for code, name, _ in _CLASSES}
TO_19 = {name: name_19 for _, name, name_19 in _CLASSES}
CLASSES_43 = tuple(TO_19)
CLASSES_19 = tuple(dict.fromkeys(name for name in TO_19.values() if name))

# Irrigated ground: CORINE 212; extended by rice, vineyards, orchards and olive groves (213-223).
IRRIGATION_REGULAR = frozenset({"Permanently irrigated land"})
IRRIGATION_EXTENDED = frozenset(
    name for code, name, _ in _CLASSES if code in (212, 213, 221, 222, 223)
)

BIGEARTHNET43 = LabelSet("bigearthnet43", "multi", CLASSES_43)
BIGEARTHNET19 = LabelSet("bigearthnet19", "multi", CLASSES_19)
# Two exclusive classes, predicted by a softmax over two columns; average precision uses the
# column of the positive class.
_YES_NO = ("not irrigated", "irrigated")
REGULAR = LabelSet("irrigation_regular", "single", _YES_NO)
EXTENDED = LabelSet("irrigation_extended", "single", _YES_NO)

# Shares of the ground from a map of level-3 codes. Maps also contain the 44th class, and codes 0
# and 999 for unlabelled ground.
_GLACIERS = (335, "Glaciers and perpetual snow")
_UNLABELLED = (0, 999)
_MAPPED = dict(sorted([*((code, name) for name, code in CLC_CODES.items()), _GLACIERS]))
CORINE = FractionSet("corine", (*_MAPPED.values(), "unlabelled"))
IRRIGATION = FractionSet("irrigation", (REGULAR.name, EXTENDED.name))


def shares_of_codes(codes: npt.NDArray[np.uint16]) -> Fractions:
    """Return ground shares by class of a map of CORINE level-3 codes; ``ValueError`` for others."""
    # by level-3 code: irrigation could not be derived from the 19 classes
    values, counts = np.unique(codes, return_counts=True)
    share_of = dict(zip(values.tolist(), (counts / codes.size).tolist(), strict=True))
    unknown = share_of.keys() - _MAPPED.keys() - set(_UNLABELLED)
    if unknown:
        raise ValueError(f"code {min(unknown)} is not a CORINE level 3 class")
    unlabelled = sum(share_of.get(code, 0.0) for code in _UNLABELLED)
    shares = {name: share_of.get(code, 0.0) for code, name in _MAPPED.items()}
    irrigated = [sum(shares[name] for name in s) for s in (IRRIGATION_REGULAR, IRRIGATION_EXTENDED)]
    return {
        CORINE.name: np.array([*shares.values(), unlabelled], np.float32),
        IRRIGATION.name: np.array(irrigated, np.float32),
    }


def labels_of_shares(fractions: Fractions, above: float = 0.0) -> Labels:
    """Return both irrigation labels of a patch: irrigated if its share exceeds ``above``.

    A patch without any labelled ground has no labels.
    """
    if fractions[CORINE.name][-1] == 1:
        return {}
    answers = (_YES_NO[bool(share > above)] for share in fractions[IRRIGATION.name])
    return {name: (answer,) for name, answer in zip(IRRIGATION.classes, answers, strict=True)}


def labels_of_43(names: Iterable[str]) -> Labels:
    """Return all four label sets of a patch from names of the 43 classes; others: ``ValueError``.

    A patch whose classes are all dropped from the 19 has no label in ``bigearthnet19``.
    """
    present = _known(names, CLASSES_43)
    labels: Labels = {
        BIGEARTHNET43.name: present,
        REGULAR.name: (_YES_NO[not IRRIGATION_REGULAR.isdisjoint(present)],),
        EXTENDED.name: (_YES_NO[not IRRIGATION_EXTENDED.isdisjoint(present)],),
    }
    # several of the 43 may map to one of the 19, which is listed once
    reduced = tuple(dict.fromkeys(TO_19[name] for name in present if TO_19[name]))
    return {**labels, BIGEARTHNET19.name: reduced} if reduced else labels


def labels_of_19(names: Iterable[str]) -> Labels:
    """Return labels from names of the 19 classes, without irrigation; others: ``ValueError``."""
    return {BIGEARTHNET19.name: _known(names, CLASSES_19)}


def _known(names: Iterable[str], classes: tuple[str, ...]) -> tuple[str, ...]:
    present = tuple(names)
    unknown = [name for name in present if name not in classes]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} is not one of the {len(classes)} of BigEarthNet")
    if not present:
        raise ValueError("no class is named")
    return present


Row = tuple[str, tuple[str, ...]]  # split and classes
_SPLITS = {
    "": "",
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_LIST = re.compile(r"\[(['\"\d-].*)?\]", re.DOTALL)  # as pandas writes lists into CSV
_log = logging.getLogger(__name__)


def split_named(value: Any, whose: str) -> str:
    """Return train, validation, test or empty for a cell; ``ValueError`` for another split."""
    text = _text(value)
    if text not in _SPLITS:
        named = ", ".join(name for name in _SPLITS if name)
        raise ValueError(f"the split of {whose} is {value!r}; give {named}, or leave it")
    return _SPLITS[text]


class LabelTable:
    """Splits and classes by id, from a table; a column with an empty name is not read.

    Attributes:
        label_set: label set of the classes; None for a table of splits only.

    Raises:
        ValueError: unreadable table, missing column, conflicting rows for an id, or unknown split.
    """

    def __init__(
        self, path: Path, label_set: str, id_column: str, label_column: str, split_column: str
    ) -> None:
        self._path, self._repeated = path, 0
        rows: dict[str, Row] = {}
        for name, cell, split in _read_rows(path, [id_column, label_column, split_column]):
            patch_id = without_suffix(_text(name))
            if not patch_id:
                continue  # spreadsheets leave blank lines at the end
            if isinstance(cell, str) and _LIST.fullmatch(cell.strip()):
                raise ValueError(
                    f"{path}: the classes of {name} are {cell}, a list written as text; part them "
                    "by semicolons, or give the table as parquet"
                )
            row = (split_named(split, f"{name} in {path}"), _names(cell))
            self._repeated += patch_id in rows
            if rows.setdefault(patch_id, row) != row:
                raise ValueError(f"{path} lists {name} twice, and differently; leave one line")
        if all(_NUMBER.fullmatch(name) for _, names in rows.values() for name in names):
            # 0.0 and 1.0, as pandas writes them into CSV, become 0 and 1
            for patch_id, (part, names) in rows.items():
                rows[patch_id] = part, tuple(re.sub(r"\.0+$", "", name) for name in names)
        self._rows = rows
        classes = sorted({name for _, names in rows.values() for name in names})
        # single (softmax) if every row has at most one class, else multi (sigmoid)
        several = any(len(names) > 1 for _, names in rows.values())
        kind = "multi" if several else "single"
        self.label_set = LabelSet(label_set, kind, tuple(classes)) if classes else None

    def match(self, patches: Sequence[str]) -> None:
        """Log how many ids are unlisted; ``ValueError`` if all are, or if two ids share a line."""
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
        """Return split and labels of a patch, both empty if it is not listed."""
        key = self._key(patch_id)
        split, classes = ("", ()) if key is None else self._rows[key]
        if self.label_set is None or not classes:
            return split, {}
        return split, {self.label_set.name: classes}

    def _key(self, patch_id: str) -> str | None:
        # complete names only, never substrings
        keys = (patch_id, PurePosixPath(patch_id).name)
        return next((key for key in keys if key in self._rows), None)


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the given columns of a table row by row; None for a column with an empty name."""
    if not path.is_file():
        raise ValueError(f"the table {path} is missing")
    read = _read_parquet if path.suffix == ".parquet" else _read_csv
    # only these columns: a table may have a hundred
    named = [column for column in columns if column]
    try:
        for row in read(path, named):
            yield tuple(row[column] if column else None for column in columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the table {path} cannot be read ({error})") from error


def parquet_file(path: Path, **options: Any) -> Any:
    """Open a parquet file; ``ValueError`` without pyarrow."""
    try:
        from pyarrow.parquet import ParquetFile  # an extra, needed only for parquet tables
    except ImportError as error:
        raise ValueError(f"{path.name} needs pyarrow: pip install pyarrow") from error
    return ParquetFile(path, **options)


def _read_csv(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    # utf-8-sig: spreadsheets put a byte order mark before the first column's name
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(path, columns, list(reader.fieldnames or []))
        for row in reader:
            if any(row.get(None) or ()):  # else the class Beaches, dunes, sands would be Beaches
                where = f"line {reader.line_num} has more cells than the header"
                raise csv.Error(f"{where}; put names with a comma in double quotes")
            yield row


def _read_parquet(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        file = parquet_file(path)
        _check_columns(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except ValueError as error:  # pyarrow's errors are ValueErrors too, but lack the path
        raise ValueError(f"the table {path} cannot be used ({error})") from error


def _check_columns(path: Path, wanted: list[str], held: list[str]) -> None:
    missing = [column for column in wanted if column not in held]
    if missing:
        raise ValueError(
            f"the table {path} has no column {missing[0]!r}; it has {', '.join(held)}: set "
            "source.id_column, source.label_column and source.split_column"
        )


def _names(value: Any) -> tuple[str, ...]:
    """Return the classes of a cell: semicolon-separated text, a list, or a number or boolean."""
    cells = value.split(";") if isinstance(value, str) else value
    parts: Sequence[Any] = cells if isinstance(cells, list | tuple) else [cells]
    return tuple(dict.fromkeys(name for part in parts if (name := _text(part))))


def _text(value: Any) -> str:
    """Return a cell as text; only None, NaN, "nan" and blank text are empty: 0 is a class."""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")  # parquet text not marked as UTF-8
    if isinstance(value, float | Decimal):
        # pandas turns a column of integers into floats if one is missing
        value = int(value) if float(value).is_integer() else value
    text = nfc("" if value is None else str(value).strip())
    return "" if text.lower() == "nan" else text
