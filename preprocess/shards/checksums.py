"""Bytes come in, checksums go out: of files, of samples, and of what is known of them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from preprocess.shards.layout import FRACTIONS, INDEX, INDEX_FIELDS, LABELS, ShardLayout


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_of(pixels: Mapping[str, npt.NDArray[np.uint16]], layout: ShardLayout) -> int:
    """Return the checksum of one sample: its groups one after the other, in layout order."""
    checksum = 0
    for group in layout.groups:
        checksum = zlib.crc32(np.ascontiguousarray(pixels[group.name]).data, checksum)
    return checksum


def facts_in(file: h5py.File, layout: ShardLayout) -> Iterable[npt.NDArray[Any]]:
    """Yield all that an open shard holds by row beside pixels, in the order of its checksum."""
    names = [f"{INDEX}/{name}" for name in INDEX_FIELDS]
    names += [f"{LABELS}/{labels.name}" for labels in layout.label_sets]
    names += [f"{FRACTIONS}/{shares.name}" for shares in layout.fraction_sets]
    return (file[name][()] for name in names)


def crc32_by_row(columns: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.uint32]:
    """Return a checksum a row over columns (rows, ...): the row's bytes, column after column."""
    checksums: list[int] = []
    for column in columns:
        # bytes as stored: text keeps its padding, numbers are little-endian in memory and file
        data = np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8)
        before = checksums or [0] * len(data)
        checksums = [zlib.crc32(row.data, old) for row, old in zip(data, before, strict=True)]
    return np.array(checksums, "<u4")
