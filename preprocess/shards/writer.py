"""The other side of a shard: patches come in one by one, a finished file and its entry go out."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from preprocess.patch import Patch
from preprocess.shards.atomic import atomic_path
from preprocess.shards.layout import (
    FORMAT,
    FORMAT_VERSION,
    FRACTIONS,
    HISTOGRAM,
    INDEX,
    INDEX_FIELDS,
    LABELS,
    PATCHES,
    PIXEL_DTYPE,
    UNIT,
    UNKNOWN_LABEL,
    FractionSet,
    LabelSet,
    ShardLayout,
)
from preprocess.shards.manifest import ShardEntry
from preprocess.shards.reader import open_shard
from preprocess.statistics import Histogram, count_values, empty_histogram

# Samples held in memory at a time: 10 MB of BigEarthNet patches, enough to count values by the
# million and to write in large pieces.
BLOCK_ROWS = 64

Block = dict[str, npt.NDArray[np.uint16]]


@dataclass(frozen=True, slots=True)
class ShardOrigin:
    """What a shard says of its source, so that a file without its manifest can be told."""

    source: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class _Content:
    """All of a shard but the pixels: index columns, label and fraction rows, counts of values."""

    histogram: Histogram
    labels: dict[str, list[npt.NDArray[np.uint8]]]
    fractions: dict[str, list[npt.NDArray[np.float32]]]
    index: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in INDEX_FIELDS})

    @property
    def rows(self) -> int:
        """Patches taken in so far."""
        return len(self.index["id"])


def write_shard(
    path: Path, layout: ShardLayout, patches: Iterable[Patch], capacity: int, origin: ShardOrigin
) -> ShardEntry | None:
    """Write a shard of at most ``capacity`` patches; the file appears whole or not at all.

    Equal patches give equal bytes. Patches are taken one by one, so that a generator may leave
    out bad ones; fewer than ``capacity`` make a shorter shard, never one with holes.

    Returns:
        The entry for the manifest, or None if there was no patch and hence no file.

    Raises:
        ValueError: there are more patches than ``capacity``, or one does not fit the layout.
    """
    stream = iter(patches)
    first = next(stream, None)
    if first is None:
        return None
    content = _Content(
        empty_histogram(len(layout.bands)),
        {s.name: [] for s in layout.label_sets},
        {s.name: [] for s in layout.fraction_sets},
    )
    blocks = _blocks(itertools.chain([first], stream), layout, content)
    with atomic_path(path) as temporary:
        _write_file(temporary, layout, blocks, capacity, (content, origin))
        if content.rows < capacity:
            _shorten(temporary, layout, content, origin)
        return _entry(path.name, temporary, layout, content.rows)


def _write_file(
    path: Path,
    layout: ShardLayout,
    blocks: Iterable[Block],
    rows: int,
    finish: tuple[_Content, ShardOrigin],
) -> None:
    # no lock: the name belongs to this process, and network file systems often refuse locks
    with h5py.File(path, "w", libver=("v110", "v110"), locking=False) as file:
        _write_pixels(file, layout, blocks, rows)
        _write_content(file, layout, *finish)


def _shorten(path: Path, layout: ShardLayout, content: _Content, origin: ShardOrigin) -> None:
    # a contiguous data set has a fixed place in the file and cannot be cut
    with atomic_path(path) as shorter, open_shard(path) as file:
        blocks = stored_blocks(file, layout, content.rows)
        _write_file(shorter, layout, blocks, content.rows, (content, origin))


def _write_pixels(file: h5py.File, layout: ShardLayout, blocks: Iterable[Block], rows: int) -> None:
    for group in layout.groups:
        name = f"{PATCHES}/{group.name}"
        data_set = file.create_dataset(name, (rows, *group.shape), PIXEL_DTYPE, track_times=False)
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


def _write_content(
    file: h5py.File, layout: ShardLayout, content: _Content, origin: ShardOrigin
) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["unit"] = UNIT
    file.attrs["source"] = origin.source
    file.attrs["simulated"] = origin.simulated
    for name, dtype in INDEX_FIELDS.items():
        column = np.array(content.index[name], dtype)
        file.create_dataset(f"{INDEX}/{name}", data=column, track_times=False)
    for label_set in layout.label_sets:
        rows = np.stack(content.labels[label_set.name])
        data_set = file.create_dataset(f"{LABELS}/{label_set.name}", data=rows, track_times=False)
        data_set.attrs["kind"] = label_set.kind
        data_set.attrs["classes"] = json.dumps(label_set.classes)
    for shares in layout.fraction_sets:
        rows = np.stack(content.fractions[shares.name])
        data_set = file.create_dataset(f"{FRACTIONS}/{shares.name}", data=rows, track_times=False)
        data_set.attrs["classes"] = json.dumps(shares.classes)
    file.create_dataset(
        HISTOGRAM,
        data=content.histogram,
        chunks=(1, content.histogram.shape[1]),
        compression="gzip",
        shuffle=True,
        track_times=False,
    )


def _blocks(patches: Iterable[Patch], layout: ShardLayout, content: _Content) -> Iterator[Block]:
    """Gather patches into blocks; everything but the pixels is noted in ``content``."""
    stream = iter(patches)
    while rows := list(itertools.islice(stream, BLOCK_ROWS)):
        for patch in rows:
            _note(patch, layout, content)
        block = {g.name: np.stack([patch.pixels[g.name] for patch in rows]) for g in layout.groups}
        count_block(content.histogram, block, layout)
        yield block


def count_block(histogram: Histogram, block: Block, layout: ShardLayout) -> None:
    """Add a block of samples to the counts of all bands (bands of the layout, 65536), in place."""
    first = 0
    for group in layout.groups:
        count_values(histogram[first : first + len(group.bands)], block[group.name])
        first += len(group.bands)


def stored_blocks(file: h5py.File, layout: ShardLayout, rows: int) -> Iterator[Block]:
    """Yield the pixels of the first rows of an open shard, a block at a time."""
    for start in range(0, rows, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, rows))
        yield {group.name: file[f"{PATCHES}/{group.name}"][part] for group in layout.groups}


def _note(patch: Patch, layout: ShardLayout, content: _Content) -> None:
    for group in layout.groups:
        pixels = patch.pixels[group.name]
        if pixels.shape != group.shape or pixels.dtype != PIXEL_DTYPE:
            raise ValueError(
                f"patch {patch.id}: {group.name} is {pixels.shape} {pixels.dtype}, "
                f"the shard holds {group.shape} {PIXEL_DTYPE}"
            )
    for name, dtype in INDEX_FIELDS.items():
        value: Any = crc32_of(patch.pixels, layout) if name == "crc32" else getattr(patch, name)
        content.index[name].append(value.encode() if dtype == "S" else value)
    for label_set in layout.label_sets:
        content.labels[label_set.name].append(_label_row(patch, label_set))
    for shares in layout.fraction_sets:
        content.fractions[shares.name].append(_fraction_row(patch, shares))


def crc32_of(pixels: Block, layout: ShardLayout) -> int:
    """Return the checksum of one sample: its groups one after the other, in layout order."""
    checksum = 0
    for group in layout.groups:
        checksum = zlib.crc32(np.ascontiguousarray(pixels[group.name]).data, checksum)
    return checksum


def _label_row(patch: Patch, label_set: LabelSet) -> npt.NDArray[np.uint8]:
    names = patch.labels.get(label_set.name)
    if names is None:
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


def _entry(name: str, path: Path, layout: ShardLayout, rows: int) -> ShardEntry:
    with open_shard(path) as file:
        offsets = offsets_in(file, layout)
    return ShardEntry(
        file=name,
        rows=rows,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        offsets=offsets,
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def offsets_in(file: h5py.File, layout: ShardLayout) -> dict[str, int]:
    """Return where in an open shard each band group's pixels begin, in bytes."""
    return {g.name: int(file[f"{PATCHES}/{g.name}"].id.get_offset()) for g in layout.groups}
