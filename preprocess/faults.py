"""What can be wrong with one shard: a file and what is claimed of it come in, faults go out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from preprocess.shards.checksums import crc32_by_row, crc32_of, facts_in, sha256_of
from preprocess.shards.layout import (
    FACTS_CRC32,
    FORMAT,
    FORMAT_VERSION,
    FRACTIONS,
    HISTOGRAM,
    INDEX,
    INDEX_FIELDS,
    LABELS,
    PATCHES,
    PIXEL_DTYPE,
    UNKNOWN_LABEL,
    ShardLayout,
)
from preprocess.shards.manifest import ShardEntry
from preprocess.shards.reader import open_shard
from preprocess.shards.writer import (
    Block,
    block_rows,
    count_block,
    offsets_in,
    stored_block,
)
from preprocess.statistics import Histogram, empty_histogram

# What h5py raises where a flipped bit has hit the structure of a file.
_UNREADABLE = (OSError, KeyError, RuntimeError, TypeError, ValueError)
_CHANGED = "differs from its checksum"


def structure_faults(path: Path, entry: ShardEntry, layout: ShardLayout) -> list[str]:
    """Return what presence, size and tables of contents tell, without reading a pixel."""
    if not path.is_file():
        return ["is missing"]
    size = path.stat().st_size
    if size != entry.size_bytes:
        return [f"has {size} bytes, the manifest says {entry.size_bytes}"]
    try:
        with open_shard(path) as file:
            return [*_head_faults(file), *_table_faults(file, entry, layout)]
    except _UNREADABLE as error:
        return [f"cannot be read as a shard ({error})"]


def content_faults(
    path: Path, entry: ShardEntry, layout: ShardLayout
) -> tuple[Histogram, list[str]]:
    """Return the counts of the pixels, and what checksums and pixels tell.

    A changed sample is named; a change elsewhere in the file shows in the file's checksum.
    """
    faults: list[str] = []
    histogram = empty_histogram(len(layout.bands))
    try:
        with open_shard(path) as file:
            faults.extend(_pixel_faults(file, entry, layout, histogram))
            faults.extend(_fact_faults(file, layout))
            faults.extend(_label_faults(file, layout))
    except _UNREADABLE as error:
        faults.append(f"cannot be read to its end ({error})")
    if sha256_of(path) != entry.sha256:
        place = "" if faults else f" in its structure, which concerns all {entry.rows} samples"
        faults.append(f"differs from its SHA-256 in the manifest{place}")
    return histogram, faults


def _head_faults(file: h5py.File) -> Iterator[str]:
    found = (file.attrs["format"], int(file.attrs["format_version"]))
    if found != (FORMAT, FORMAT_VERSION):
        yield f"is of format {found[0]} {found[1]}, not {FORMAT} {FORMAT_VERSION}"


def _table_faults(file: h5py.File, entry: ShardEntry, layout: ShardLayout) -> Iterator[str]:
    rows = entry.rows
    shapes: dict[str, tuple[int, ...]] = {
        f"{PATCHES}/{group.name}": (rows, *group.shape) for group in layout.groups
    }
    shapes |= {f"{LABELS}/{s.name}": (rows, len(s.classes)) for s in layout.label_sets}
    shapes |= {f"{FRACTIONS}/{s.name}": (rows, len(s.classes)) for s in layout.fraction_sets}
    shapes |= {f"{INDEX}/{name}": (rows,) for name in INDEX_FIELDS if name != "transform"}
    shapes |= {f"{INDEX}/transform": (rows, 6), f"{INDEX}/{FACTS_CRC32}": (rows,)}
    for name, shape in shapes.items():
        if name not in file:
            yield f"holds no {name}"
        elif file[name].shape != shape:
            yield f"{name} is of shape {file[name].shape}, the manifest says {shape}"
        elif name.startswith(PATCHES) and file[name].dtype != PIXEL_DTYPE:
            yield f"{name} is of type {file[name].dtype}, not {PIXEL_DTYPE}"
    offsets = offsets_in(file, layout)
    if offsets != entry.offsets:
        yield f"pixels begin at {offsets}, the manifest says {entry.offsets}"


def _pixel_faults(
    file: h5py.File, entry: ShardEntry, layout: ShardLayout, histogram: Histogram
) -> Iterator[str]:
    """Yield the samples that differ from their checksum; count the pixels in ``histogram``."""
    checksums = file[f"{INDEX}/crc32"][()]
    sound = True
    for row, block in _readable_blocks(file, layout, entry.rows):
        if isinstance(block, OSError):
            sound = False
            yield f"sample {_name(file, row)} (row {row}) cannot be decoded ({block})"
            continue
        count_block(histogram, block, layout)
        for place in range(len(next(iter(block.values())))):
            sample = {name: pixels[place] for name, pixels in block.items()}
            if crc32_of(sample, layout) != checksums[row + place]:
                sound = False
                yield f"sample {_name(file, row + place)} (row {row + place}) {_CHANGED}"
    # counts of changed pixels would only repeat what is known
    if sound and not np.array_equal(histogram, file[HISTOGRAM][()]):
        yield f"{HISTOGRAM} differs from the pixels"


def _readable_blocks(
    file: h5py.File, layout: ShardLayout, rows: int
) -> Iterator[tuple[int, Block | OSError]]:
    """Yield first row and pixels of blocks; in the place of a sample without pixels, the error."""
    for part in block_rows(rows):
        try:
            yield part.start, stored_block(file, layout, part)
        except OSError:
            # one damaged chunk hides all others of its block: sample by sample shows which it is
            for row in range(part.start, part.stop):
                try:
                    yield row, stored_block(file, layout, slice(row, row + 1))
                except OSError as error:
                    yield row, error


def _name(file: h5py.File, row: int) -> str:
    return str(file[f"{INDEX}/id"][row].decode(errors="replace"))


def _fact_faults(file: h5py.File, layout: ShardLayout) -> Iterator[str]:
    changed = crc32_by_row(facts_in(file, layout)) != file[f"{INDEX}/{FACTS_CRC32}"][()]
    for row in np.flatnonzero(changed).tolist():
        yield f"what is known of sample {_name(file, row)} (row {row}) {_CHANGED}"


def _label_faults(file: h5py.File, layout: ShardLayout) -> Iterator[str]:
    for label_set in layout.label_sets:
        rows = file[f"{LABELS}/{label_set.name}"][()]
        answered = rows[(rows != UNKNOWN_LABEL).any(axis=1)]
        single = label_set.kind == "single" and (answered.sum(axis=1) != 1).any()
        if (answered > 1).any() or single:
            yield f"{LABELS}/{label_set.name} holds rows that are no {label_set.kind} label"
