"""One side of a shard: pixels by byte offset into buffers of the caller, index through h5py."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from preprocess.shards.aio import new_requests, read_many
from preprocess.shards.compression import NO_CODEC, ChunkMap, chunk_map_of, decode
from preprocess.shards.format import (
    FRACTIONS,
    INDEX,
    LABELS,
    PATCHES,
    PIXEL_DTYPE,
    GroupLayout,
    ShardLayout,
)
from preprocess.shards.manifest import Manifest, ShardEntry


class ShardReader:
    """Reads samples of one shard, from any number of threads.

    Pixels are read with ``pread`` at the offsets that the manifest gives: no HDF5 lock, no file
    position, and no state that a fork could share by accident. The offsets of compressed samples
    are listed once through HDF5, and the samples decoded without it. The file is opened at first
    use and never pickled.
    """

    def __init__(self, folder: Path, entry: ShardEntry, layout: ShardLayout) -> None:
        self.path = folder / entry.file
        self.entry = entry
        self.layout = layout
        self._descriptor: int | None = None
        self._chunks: dict[str, ChunkMap] = {}
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path, ShardEntry, ShardLayout]]:
        # an open file means nothing in another process
        return ShardReader, (self.path.parent, self.entry, self.layout)

    @property
    def descriptor(self) -> int:
        """The file, opened at first use."""
        if self._descriptor is None:
            with self._opening:  # of several threads that come first, one opens
                if self._descriptor is None:
                    self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def read_into(self, row: int, buffers: Mapping[str, npt.NDArray[np.uint16]]) -> None:
        """Read one sample into C-contiguous uint16 buffers, one of each group's shape.

        Raises:
            IndexError: no such row.
            OSError: the file is missing or damaged, or shorter than the manifest says.
        """
        if not 0 <= row < self.entry.rows:
            raise IndexError(f"{self.path} has {self.entry.rows} rows, row {row} was asked for")
        for group in self.layout.groups:
            if group.name in buffers:
                self._read_group(group, row, buffers[group.name])

    def read(self, row: int) -> dict[str, npt.NDArray[np.uint16]]:
        """Return one sample as new arrays, ``{"b10": (bands, size_px, size_px), ...}``."""
        buffers = {group.name: np.empty(group.shape, PIXEL_DTYPE) for group in self.layout.groups}
        self.read_into(row, buffers)
        return buffers

    def index(self, field: str) -> npt.NDArray[Any]:
        """Return one index field of all rows; text comes as ``str``."""
        # Opened for the moment: a handle of HDF5 is safe neither across threads nor across forks.
        with open_shard(self.path) as file:
            values: npt.NDArray[Any] = file[f"{INDEX}/{field}"][()]
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values

    def labels(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a label set of all rows: (rows, classes) of 0, 1 or ``UNKNOWN_LABEL``."""
        with open_shard(self.path) as file:
            values: npt.NDArray[np.uint8] = file[f"{LABELS}/{name}"][()]
        return values

    def fractions(self, name: str) -> npt.NDArray[np.float32]:
        """Return shares of ground of all rows: (rows, classes) from 0 to 1, NaN where unknown."""
        with open_shard(self.path) as file:
            values: npt.NDArray[np.float32] = file[f"{FRACTIONS}/{name}"][()]
        return values

    def close(self) -> None:
        """Close the file; it opens again at the next read."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read_group(self, group: GroupLayout, row: int, buffer: npt.NDArray[np.uint16]) -> None:
        view = buffer.data.cast("B")
        if view.nbytes != group.sample_bytes:
            raise ValueError(
                f"buffer of {group.name} has {view.nbytes} bytes, a sample {group.sample_bytes}"
            )
        if self.entry.codec == NO_CODEC:
            self.read_bytes(view, self.entry.offsets[group.name] + row * group.sample_bytes)
            return
        chunks = self._chunk_map(group.name)
        chunk = bytearray(int(chunks.size[row]))
        self.read_bytes(memoryview(chunk), int(chunks.offset[row]))
        try:
            decode(chunk, chunks.filters, int(chunks.skipped[row]), buffer)
        except ValueError as error:
            raise OSError(f"{self.path}, row {row} of {group.name}: {error}") from error

    def read_bytes(self, view: memoryview, offset: int) -> None:
        """Fill the memory with bytes of the file from ``offset`` on.

        Raises:
            OSError: the file is missing or ends before.
        """
        while view:  # network file systems may return less than was asked for
            read = os.preadv(self.descriptor, [view], offset)
            if read == 0:
                raise OSError(f"{self.path} ends before byte {offset + len(view)}: truncated")
            view, offset = view[read:], offset + read

    def _chunk_map(self, group: str) -> ChunkMap:
        if group not in self._chunks:
            with self._opening, open_shard(self.path) as file:
                self._chunks[group] = chunk_map_of(file[f"{PATCHES}/{group}"])
        return self._chunks[group]


def open_shard(path: Path) -> h5py.File:
    """Open a shard read-only; without locks, which network file systems often refuse.

    Raises:
        OSError: the file is missing, cut short, or not HDF5; the message names it.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise
    except OSError as error:  # HDF5 tells what is wrong, but not with which file
        raise OSError(f"{path} cannot be read as a shard: {error}; see simclr-verify") from error


def open_readers(folder: Path, manifest: Manifest) -> list[ShardReader]:
    """Return one lazy reader for each shard of a packed source."""
    return [ShardReader(folder, entry, manifest.layout) for entry in manifest.shards]


OTHER_FILES = 256  # descriptors left for sockets, logs and libraries


class BatchReader:
    """Reads the rows of shards of one layout, numbered through from the first shard to the last.

    While a thread computes it holds the interpreter's lock, and all other readers of the process
    wait; therefore all reads of a batch are prepared together and done in one call.

    Raises:
        ValueError: the process may not hold as many files open as there are shards.
    """

    def __init__(self, readers: Sequence[ShardReader]) -> None:
        _allow_files(len(readers) + OTHER_FILES)
        self._readers = readers
        rows = np.array([reader.entry.rows for reader in readers], np.int64)
        self._ends = np.cumsum(rows)
        self._starts = self._ends - rows
        self._plain = np.array([reader.entry.codec == NO_CODEC for reader in readers])
        self._groups = {group.name: group for group in readers[0].layout.groups}
        self._offsets = {
            name: np.array([reader.entry.offsets.get(name, 0) for reader in readers], np.int64)
            for name in self._groups
        }

    def read_into(
        self,
        numbers: npt.NDArray[np.int64],
        buffers: Mapping[str, npt.NDArray[np.uint16]],
        places: npt.NDArray[np.int64],
    ) -> None:
        """Read row ``numbers[i]`` into ``buffers[group][places[i]]`` of every group with a buffer.

        Args:
            numbers: rows, counted over all shards; ascending ones are read in one direction.
            buffers: C-contiguous uint16 (batch, bands, size_px, size_px) of each group to read.
            places: index into the batch of each row.

        Raises:
            ValueError: a buffer is not of its group's shape, or not contiguous.
            IndexError: a batch has no such place.
            OSError: a file is missing or damaged, or shorter than the manifest says.
        """
        shards = np.searchsorted(self._ends, numbers, side="right")
        rows, plain = numbers - self._starts[shards], self._plain[shards]
        for name, buffer in buffers.items():
            _check_buffer(self._groups[name], buffer, places)
        self._read_plain(buffers, shards[plain], rows[plain], places[plain])
        for shard, row, place in zip(shards[~plain], rows[~plain], places[~plain], strict=True):
            one = {name: buffer[place] for name, buffer in buffers.items()}
            self._readers[shard].read_into(int(row), one)

    def _read_plain(
        self,
        buffers: Mapping[str, npt.NDArray[np.uint16]],
        shards: npt.NDArray[np.intp],
        rows: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
    ) -> None:
        readers = [self._readers[shard] for shard in shards.tolist()]
        descriptors = np.array([reader.descriptor for reader in readers], np.int64)
        requests = new_requests(len(buffers), len(rows))
        requests["descriptor"] = descriptors
        for request, (name, buffer) in zip(requests, buffers.items(), strict=True):
            request["size"] = size = self._groups[name].sample_bytes
            request["address"] = buffer.ctypes.data + places * size
            request["offset"] = self._offsets[name][shards] + rows * size
        lengths = read_many(requests)
        for group, i in np.argwhere(lengths != requests["size"]).tolist():
            # network file systems may return less than was asked for; what has failed says here why
            buffer = list(buffers.values())[group][places[i]]
            readers[i].read_bytes(buffer.data.cast("B"), int(requests["offset"][group, i]))


def _check_buffer(
    group: GroupLayout, buffer: npt.NDArray[np.uint16], places: npt.NDArray[np.int64]
) -> None:
    # the kernel writes to addresses: what does not fit would land in foreign memory
    if buffer.shape[1:] != group.shape or buffer.dtype != PIXEL_DTYPE:
        raise ValueError(
            f"buffer of {group.name} is {buffer.dtype} {buffer.shape}, "
            f"a batch of it is {PIXEL_DTYPE} (batch, {', '.join(map(str, group.shape))})"
        )
    if not (buffer.flags.c_contiguous and buffer.flags.writeable):
        raise ValueError(f"buffer of {group.name} is not one writable piece of memory")
    if places.min(initial=0) < 0 or places.max(initial=-1) >= len(buffer):
        raise IndexError(
            f"buffer of {group.name} has {len(buffer)} places, not those of {places.min()} to "
            f"{places.max()}"
        )


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or soft >= wanted:
        return
    if hard < wanted:
        raise ValueError(
            f"these shards take {wanted} open files, and this process may have {hard}; raise the "
            "limit (ulimit -Hn) or pack with a larger shard_size_mib"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
