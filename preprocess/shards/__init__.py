"""Readers of packed shards: samples, index and labels; the only interface that simclr uses.

Uncompressed pixels are read with ``pread`` at the manifest's byte offsets, without HDF5.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from preprocess.shards.format import (
    FRACTIONS,
    INDEX,
    LABELS,
    NO_CODEC,
    PATCHES,
    PIXEL_DTYPE,
    UNKNOWN_LABEL,
    GroupLayout,
    LabelSet,
    ShardLayout,
    load_filter,
    open_shard,
)
from preprocess.shards.manifest import Manifest, ShardEntry, read_manifest

__all__ = [
    "UNKNOWN_LABEL",
    "BatchReader",
    "GroupLayout",
    "LabelSet",
    "Manifest",
    "ShardLayout",
    "ShardReader",
    "open_readers",
    "read_manifest",
]

MAX_VECTORS = 1024  # buffers of one preadv: IOV_MAX of Linux
OTHER_FILES = 256  # descriptors reserved for sockets, logs and libraries


class ShardReader:
    """Thread-safe reader of the samples of one shard.

    ``pread`` takes no HDF5 lock, moves no file position and has no state that a fork could share
    by accident. HDF5 decodes compressed samples, one at a time per process. Files are opened at
    first use and never pickled.
    """

    def __init__(self, folder: Path, entry: ShardEntry, layout: ShardLayout) -> None:
        self.path = folder / entry.file
        self.entry = entry
        self.layout = layout
        self._descriptor: int | None = None
        # with the process id: an HDF5 handle must not be used after a fork
        self._compressed: tuple[int, h5py.File] | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path, ShardEntry, ShardLayout]]:
        # open files are not valid in another process
        return ShardReader, (self.path.parent, self.entry, self.layout)

    @property
    def descriptor(self) -> int:
        """File descriptor of the shard, opened at first use."""
        if self._descriptor is None:
            with self._opening:  # only one thread opens the file
                if self._descriptor is None:
                    self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def decode_into(self, row: int, name: str, buffer: npt.NDArray[np.uint16]) -> None:
        """Decode a compressed sample of a group into a C-contiguous buffer of its shape.

        Raises:
            OSError: the file is missing or damaged.
        """
        try:
            with self._opening:
                if self._compressed is None or self._compressed[0] != os.getpid():
                    load_filter(self.entry.codec)
                    self._compressed = os.getpid(), open_shard(self.path)
            self._compressed[1][f"{PATCHES}/{name}"].read_direct(buffer, np.s_[row])
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"{self.path}, row {row} of {name}: cannot be decoded ({error}); see simclr-verify"
            ) from error

    def read(self, row: int) -> dict[str, npt.NDArray[np.uint16]]:
        """Return one sample as new arrays, ``{"b10": (bands, size_px, size_px), ...}``.

        Raises:
            IndexError: there is no such row.
            OSError: the file is missing or damaged, or shorter than the manifest says.
        """
        shapes = {group.name: (1, *group.shape) for group in self.layout.groups}
        buffers = {name: np.empty(shape, PIXEL_DTYPE) for name, shape in shapes.items()}
        BatchReader([self]).read_into(np.array([row]), buffers, np.array([0]))
        return {name: buffer[0] for name, buffer in buffers.items()}

    def index(self, field: str) -> npt.NDArray[Any]:
        """Return one index field of all rows; text as ``str``."""
        values = self._rows(f"{INDEX}/{field}")
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values

    def labels(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a label set of all rows: (rows, classes) with 0, 1 or ``UNKNOWN_LABEL``."""
        return self._rows(f"{LABELS}/{name}")

    def fractions(self, name: str) -> npt.NDArray[np.float32]:
        """Return a fraction set of all rows: (rows, classes) from 0 to 1, NaN where unknown."""
        return self._rows(f"{FRACTIONS}/{name}")

    def _rows(self, name: str) -> npt.NDArray[Any]:
        # Opened per call: an HDF5 handle is not safe across threads or forks.
        with open_shard(self.path) as file:
            return np.asarray(file[name][()])

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._compressed = None

    def read_bytes(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill buffers one after the other with the file's bytes from ``offset`` on.

        Raises:
            OSError: the file is missing, unreadable or too short.
        """
        pending = list(views)
        while pending:
            try:
                read = os.preadv(self.descriptor, pending[:MAX_VECTORS], offset)
            except OSError as error:
                raise OSError(
                    error.errno, f"{error.strerror} at byte {offset}; see simclr-verify", self.path
                ) from error
            if read == 0:
                raise OSError(f"{self.path} ends before byte {offset + 1}: truncated")
            offset += read
            while pending and read >= len(pending[0]):
                read -= len(pending.pop(0))
            if read:  # network file systems may return less than requested
                pending[0] = pending[0][read:]


def open_readers(folder: Path, manifest: Manifest) -> list[ShardReader]:
    """Return one lazy reader per shard of a packed source."""
    return [ShardReader(folder, entry, manifest.layout) for entry in manifest.shards]


class BatchReader:
    """Reader of batches of rows, numbered consecutively over all shards.

    Raises:
        ValueError: there are more shards than files that the process may open.
    """

    def __init__(self, readers: Sequence[ShardReader]) -> None:
        wanted = len(readers) + OTHER_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        if most < wanted:
            raise ValueError(
                f"these shards take {wanted} open files, and this process may have {hard}; "
                "raise the limit (ulimit -Hn) or pack with a larger shard_size_mib"
            )
        if soft != resource.RLIM_INFINITY:
            # beside what other readers of this process open; no more, as children inherit it
            own = max(soft + len(readers), wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(own, most), hard))
        self._readers = readers
        rows = np.array([reader.entry.rows for reader in readers], np.int64)
        self._ends = np.cumsum(rows)
        self._starts = self._ends - rows
        self._groups = [{group.name: group for group in one.layout.groups} for one in readers]

    def read_into(
        self,
        numbers: npt.NDArray[np.int64],
        buffers: Mapping[str, npt.NDArray[np.uint16]],
        slots: npt.NDArray[np.int64],
    ) -> None:
        """Read row ``numbers[i]`` into ``buffers[group][slots[i]]`` of every group with a buffer.

        Args:
            numbers: row numbers over all shards, all of one layout; adjacent rows of a file are
                read in one call.
            buffers: C-contiguous uint16 (batch, bands, size_px, size_px) of each group to read.
            slots: batch index of each row.

        Raises:
            ValueError: a buffer has another shape than its group or is not contiguous, or rows
                have different layouts.
            IndexError: there is no such row, or the batch has no such slot.
            OSError: a file is missing or damaged, or shorter than the manifest says.
        """
        if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= self._ends[-1]:
            raise IndexError(f"row {numbers.min()} or {numbers.max()} of {self._ends[-1]} rows")
        shards = np.searchsorted(self._ends, numbers, side="right")
        rows = numbers - self._starts[shards]
        held = [self._groups[shard] for shard in set(shards.tolist())] or self._groups[:1]
        groups = held[0]
        for name, buffer in buffers.items():
            if any(other.get(name) != groups[name] for other in held):
                raise ValueError(
                    f"rows of several layouts, which differ in {name}; read each alone"
                )
            _check_buffer(groups[name], buffer, slots)
        memory = {name: buffer.data.cast("B") for name, buffer in buffers.items()}
        # a run ends where the next row does not follow in the same file
        ends = np.flatnonzero((np.diff(rows) != 1) | (np.diff(shards) != 0)) + 1
        shard_list, row_list, slot_list = shards.tolist(), rows.tolist(), slots.tolist()
        start = 0
        for end in (*ends.tolist(), len(row_list)) if row_list else ():
            reader, first = self._readers[shard_list[start]], row_list[start]
            run = slot_list[start:end]
            if reader.entry.codec == NO_CODEC:
                for name, view in memory.items():
                    size = groups[name].sample_bytes
                    views = [view[slot * size : (slot + 1) * size] for slot in run]
                    reader.read_bytes(views, reader.entry.offsets[name] + first * size)
            else:
                for row, slot in enumerate(run, first):
                    for name, buffer in buffers.items():
                        reader.decode_into(row, name, buffer[slot])
            start = end


def _check_buffer(
    group: GroupLayout, buffer: npt.NDArray[np.uint16], slots: npt.NDArray[np.int64]
) -> None:
    if buffer.shape[1:] != group.shape or buffer.dtype != PIXEL_DTYPE:
        raise ValueError(
            f"buffer of {group.name} is {buffer.dtype} {buffer.shape}, "
            f"a batch of it is {PIXEL_DTYPE} (batch, {', '.join(map(str, group.shape))})"
        )
    if not (buffer.flags.c_contiguous and buffer.flags.writeable):
        raise ValueError(f"buffer of {group.name} is not one writable piece of memory")
    if slots.min(initial=0) < 0 or slots.max(initial=-1) >= len(buffer):
        raise IndexError(
            f"buffer of {group.name} has {len(buffer)} slots, but {slots.min()} to {slots.max()} "
            "were given"
        )
