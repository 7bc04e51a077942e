"""Rows of many shards come in; their pixels go into places of one batch, from any thread."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from preprocess.shards.aio import new_requests, read_many
from preprocess.shards.codec import NO_CODEC
from preprocess.shards.layout import PIXEL_DTYPE, GroupLayout
from preprocess.shards.reader import ShardReader

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
