"""Write one shard from a stream of patches, atomically; used by packing and repair."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from preprocess.shards.atomic_io import atomic_path
from preprocess.shards.format import (
    FACTS_CRC32,
    FORMAT,
    FORMAT_VERSION,
    FRACTIONS,
    HISTOGRAM,
    INDEX,
    INDEX_FIELDS,
    LABELS,
    NO_CODEC,
    NUM_PIXEL_VALUES,
    OPTIONAL_INDEX_FIELDS,
    PATCHES,
    PIXEL_DTYPE,
    UNIT,
    UNKNOWN_LABEL,
    FractionSet,
    LabelSet,
    Patch,
    ShardLayout,
    crc32_by_row,
    crc32_of,
    dataset_options,
    facts_in,
    open_shard,
    sha256_of,
)
from preprocess.shards.manifest import Histogram, ShardEntry, ShardOrigin, empty_histogram

# Samples in memory at a time: 10 MB of BigEarthNet patches, enough to count millions of values at
# once and to write in large pieces.
BLOCK_ROWS = 64

_ALL_FIELDS = INDEX_FIELDS | OPTIONAL_INDEX_FIELDS

Block = dict[str, npt.NDArray[np.uint16]]


class _Draft:
    """Content of a shard being written, except the pixels, which go directly to the file."""

    def __init__(self, layout: ShardLayout, origin: ShardOrigin, codec: str) -> None:
        self.layout, self.origin, self.codec = layout, origin, codec
        self.histogram = empty_histogram(len(layout.bands))
        self.index: dict[str, list[Any]] = {name: [] for name in _ALL_FIELDS}
        self.labels: dict[str, list[npt.NDArray[np.uint8]]] = {
            s.name: [] for s in layout.label_sets
        }
        self.fractions: dict[str, list[npt.NDArray[np.float32]]] = {
            s.name: [] for s in layout.fraction_sets
        }

    def blocks(self, patches: Iterable[Patch]) -> Iterator[Block]:
        """Yield the patches' pixels in blocks, and record everything else."""
        stream = iter(patches)
        while rows := list(itertools.islice(stream, BLOCK_ROWS)):
            for patch in rows:
                self._note(patch)
            groups = self.layout.groups
            block = {g.name: np.stack([patch.pixels[g.name] for patch in rows]) for g in groups}
            count_block(self.histogram, block, self.layout)
            yield block

    def _note(self, patch: Patch) -> None:
        for group in self.layout.groups:
            pixels = patch.pixels[group.name]
            if pixels.shape != group.shape or pixels.dtype != PIXEL_DTYPE:
                raise ValueError(
                    f"patch {patch.id}: {group.name} is {pixels.shape} {pixels.dtype}, "
                    f"the shard holds {group.shape} {PIXEL_DTYPE}"
                )
        checksum = crc32_of(patch.pixels, self.layout)
        for name, dtype in _ALL_FIELDS.items():
            value: Any = checksum if name == "crc32" else getattr(patch, name)
            self.index[name].append(value.encode() if dtype == "S" else value)
        for label_set in self.layout.label_sets:
            self.labels[label_set.name].append(_label_row(patch, label_set))
        for shares in self.layout.fraction_sets:
            self.fractions[shares.name].append(_fraction_row(patch, shares))


def write_shard(
    path: Path,
    layout: ShardLayout,
    patches: Iterable[Patch],
    capacity: int,
    origin: ShardOrigin,
    codec: str = NO_CODEC,
) -> ShardEntry | None:
    """Write a shard of at most ``capacity`` patches, atomically.

    Equal patches give equal bytes. Patches are consumed one by one, so a generator may skip bad
    ones; fewer than ``capacity`` make a shorter shard, never one with holes. At most
    ``BLOCK_ROWS`` patches are in memory at a time.

    Returns:
        The entry for the manifest, or None if there was no patch and hence no file.

    Raises:
        ValueError: there are more patches than ``capacity``, a patch does not fit the layout, or
            the codec is not available.
    """
    stream = iter(patches)
    first = next(stream, None)
    if first is None:
        return None
    draft = _Draft(layout, origin, codec)
    with atomic_path(path) as temporary:
        _write_file(temporary, draft, draft.blocks(itertools.chain([first], stream)), capacity)
        rows = len(draft.index["id"])
        if rows < capacity:
            # a contiguous data set has a fixed size in the file and cannot be truncated
            with atomic_path(temporary) as shorter, open_shard(temporary) as file:
                blocks = (stored_block(file, layout, part) for part in block_rows(rows))
                _write_file(shorter, draft, blocks, rows)
        with open_shard(temporary) as file:
            offsets = offsets_in(file, layout)
        size_bytes, sha256 = temporary.stat().st_size, sha256_of(temporary)
        return ShardEntry(path.name, rows, size_bytes, sha256, offsets, codec)


def _write_file(path: Path, draft: _Draft, blocks: Iterable[Block], rows: int) -> None:
    # A fixed file format version: a newer HDF5 would write other bytes for equal patches.
    # No lock: only this process uses the name, and network file systems often refuse locks.
    try:
        with h5py.File(path, "w", libver=("v110", "v110"), locking=False) as file:
            _write_pixels(file, draft, blocks, rows)
            _write_content(file, draft)
    except OSError as error:
        # HDF5 gives the file and the reason, such as a full disk, only within its message
        if error.errno is None or error.filename is not None or "errno =" not in str(error):
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def _write_pixels(file: h5py.File, draft: _Draft, blocks: Iterable[Block], rows: int) -> None:
    for group in draft.layout.groups:
        name, options = f"{PATCHES}/{group.name}", dataset_options(draft.codec, group.shape)
        shape = (rows, *group.shape)
        data_set = file.create_dataset(name, shape, PIXEL_DTYPE, track_times=False, **options)
        data_set.attrs["bands"] = json.dumps(group.bands)
        data_set.attrs["ground_resolution_m"] = group.ground_resolution_m
    row = 0
    for block in blocks:
        stop = row + len(next(iter(block.values())))
        if stop > rows:
            raise ValueError(f"more than {rows} patches for a shard of {rows} rows")
        for name, pixels in block.items():
            file[f"{PATCHES}/{name}"][row:stop] = pixels
        row = stop


def _write_content(file: h5py.File, draft: _Draft) -> None:
    file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, unit=UNIT)
    file.attrs.update(source=draft.origin.source, simulated=draft.origin.simulated)
    for name, dtype in _ALL_FIELDS.items():
        if name in INDEX_FIELDS or any(draft.index[name]):
            _write_column(file, f"{INDEX}/{name}", np.array(draft.index[name], dtype))
    for label_set in draft.layout.label_sets:
        rows = np.stack(draft.labels[label_set.name])
        data_set = _write_column(file, f"{LABELS}/{label_set.name}", rows)
        data_set.attrs.update(kind=label_set.kind, classes=json.dumps(label_set.classes))
    for shares in draft.layout.fraction_sets:
        rows = np.stack(draft.fractions[shares.name])
        data_set = _write_column(file, f"{FRACTIONS}/{shares.name}", rows)
        data_set.attrs["classes"] = json.dumps(shares.classes)
    _write_column(file, f"{INDEX}/{FACTS_CRC32}", crc32_by_row(facts_in(file, draft.layout)))
    file.create_dataset(
        HISTOGRAM,
        data=draft.histogram,
        chunks=(1, draft.histogram.shape[1]),  # one chunk per band
        compression="gzip",
        shuffle=True,
        track_times=False,
    )


def _write_column(file: h5py.File, name: str, rows: npt.NDArray[Any]) -> h5py.Dataset:
    if rows.dtype.kind == "S":
        rows = rows.astype(h5py.string_dtype("utf-8", rows.dtype.itemsize))
    # timestamps would make equal shards differ
    return file.create_dataset(name, data=rows, track_times=False)


def count_block(histogram: Histogram, block: Block, layout: ShardLayout) -> None:
    """Add a block of samples to the counts of all bands (bands, 65536), in place."""
    planes = (block[g.name][:, band] for g in layout.groups for band in range(len(g.bands)))
    for counts, pixels in zip(histogram, planes, strict=True):
        counts += np.bincount(pixels.ravel(), minlength=NUM_PIXEL_VALUES)


def block_rows(rows: int) -> Iterator[slice]:
    """Yield the row ranges of a shard, block by block."""
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def stored_block(file: h5py.File, layout: ShardLayout, rows: slice) -> Block:
    """Return the pixels of some rows of an open shard.

    Raises:
        OSError: a chunk cannot be decoded.
    """
    return {group.name: file[f"{PATCHES}/{group.name}"][rows] for group in layout.groups}


def _label_row(patch: Patch, label_set: LabelSet) -> npt.NDArray[np.uint8]:
    names = patch.labels.get(label_set.name)
    if names is None:  # not labelled, as opposed to none of the classes
        return np.full(len(label_set.classes), UNKNOWN_LABEL, np.uint8)
    unknown = set(names).difference(label_set.classes)
    if unknown or (label_set.kind == "single" and len(names) != 1):
        raise ValueError(
            f"patch {patch.id}: classes {list(names)} do not answer the {label_set.kind} label "
            f"set {label_set.name}"
        )
    return np.array([name in names for name in label_set.classes], np.uint8)


def _fraction_row(patch: Patch, shares: FractionSet) -> npt.NDArray[np.float32]:
    found = patch.fractions.get(shares.name)
    if found is None:
        return np.full(len(shares.classes), np.nan, np.float32)
    row = np.asarray(found, np.float32)
    if row.shape != (len(shares.classes),):
        raise ValueError(
            f"patch {patch.id}: {row.size} fractions for the {len(shares.classes)} classes of "
            f"{shares.name}"
        )
    return row


def offsets_in(file: h5py.File, layout: ShardLayout) -> dict[str, int]:
    """Return the byte offset of each band group's pixels in an open shard.

    Compressed groups are omitted, since each of their chunks has its own offset.
    """
    data_sets = {group.name: file[f"{PATCHES}/{group.name}"] for group in layout.groups}
    return {n: int(d.id.get_offset()) for n, d in data_sets.items() if d.chunks is None}
