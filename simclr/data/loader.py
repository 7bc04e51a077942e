"""Loader: reads planned samples from shards and yields batches on the device.

Threads read by offset into fixed slots of pinned memory. A read holds neither the GIL nor HDF5's
lock, so that no worker processes, pickling or copies are needed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from simclr.data.dataset import ShardDataset
from simclr.data.sampler import DeterministicBatchSampler, Samples, TemporalPairSampler


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as stored, on the device."""

    # by name of band group: (B, bands, size_px, size_px) uint16; empty if there are parts
    groups: dict[str, torch.Tensor]
    source: torch.Tensor  # (B,) int64, index of each sample's source
    sample_id: torch.Tensor  # (B,) int64
    epoch: torch.Tensor  # (B,) int64, how often each sample was read before
    # True: the first half gives first views, the second half second views; False: both views of a
    # pair come from one sample
    paired: bool = False
    layout: int = 0  # layout of the samples, index into ``ShardDataset.layouts``
    # for a data set with several layouts: positions in the batch and samples of each
    parts: tuple[tuple[torch.Tensor, Batch], ...] = ()

    def part(self, samples: slice) -> Batch:
        """Return some samples of a batch of one layout, without copying and with paired=False."""
        groups = {name: stored[samples] for name, stored in self.groups.items()}
        own = self.source[samples], self.sample_id[samples], self.epoch[samples]
        return Batch(groups, *own, layout=self.layout)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor of the batch and its parts."""
        yield from (*self.groups.values(), self.source, self.sample_id, self.epoch)
        for positions, part in self.parts:
            yield positions
            yield from part.tensors()


class Loader:
    """Iterates over ``plan(0), plan(1), ...``; a batch is valid until the next one is requested.

    Args:
        dataset: source of the samples.
        plan: returns the samples of the n-th batch, at most ``batch_size``, and the epoch of each;
            or the samples alone, for epoch 0.
        num_batches: number of batches.
        batch_size: samples per slot.
        device: device of the batches.
        num_threads: number of reader threads.
        num_slots: number of batches in memory, at least 2: one is in use while others are filled.
        paired: the plan returns samples for first views, then as many for second views.
    """

    def __init__(  # noqa: PLR0913 - all settings of a loader
        self,
        dataset: ShardDataset,
        plan: Callable[[int], Samples | tuple[Samples, Samples]],
        *,
        num_batches: int,
        batch_size: int,
        device: torch.device,
        num_threads: int = 2,
        num_slots: int = 3,
        paired: bool = False,
    ) -> None:
        self._dataset, self._plan, self._num_batches = dataset, plan, num_batches
        self._device, self._num_threads = device, num_threads
        self._slots = [_Slot(dataset, batch_size, device) for _ in range(num_slots)]
        self._paired = paired
        self.wait_s = 0.0  # total time that the consumer has waited for batches

    def __iter__(self) -> Iterator[Batch]:
        pool = partial(ThreadPoolExecutor, initializer=_use_device, initargs=(self._device,))
        # A separate thread starts the copy of a batch as soon as it is read, long before it is
        # requested.
        with pool(self._num_threads, "loader") as readers, pool(1, "copy") as copier:
            pending: deque[tuple[_Slot, Future[Batch]]] = deque()
            ahead = len(self._slots) - 1  # one slot stays with the consumer
            try:
                for number in range(self._num_batches + ahead):
                    if number < self._num_batches:
                        # round-robin: the next slot is the one that the consumer has just released
                        slot = self._slots[number % len(self._slots)]
                        reads = self._start_filling(readers, slot, number)
                        copied = copier.submit(slot.copy, reads, self._device, self._paired)
                        pending.append((slot, copied))
                    if number >= ahead:
                        slot, copied = pending.popleft()
                        start = time.perf_counter()
                        batch = copied.result()
                        self.wait_s += time.perf_counter() - start
                        slot.hand_over(batch)
                        yield batch
            finally:
                # do not read or copy batches that will never be requested
                readers.shutdown(cancel_futures=True)
                copier.shutdown(cancel_futures=True)

    def _start_filling(
        self, pool: ThreadPoolExecutor, slot: _Slot, number: int
    ) -> list[Future[None]]:
        planned = self._plan(number)
        if not isinstance(planned, tuple):
            planned = planned, np.zeros_like(planned)
        slot.assign(self._dataset, *planned)
        # Each thread reads a contiguous part, in file order.
        order = np.argsort(slot.sample_id, kind="stable")
        ends = [len(order) * part // self._num_threads for part in range(self._num_threads + 1)]
        parts = [order[start:end] for start, end in pairwise(ends)]
        return [pool.submit(slot.fill, self._dataset, part) for part in parts if len(part)]


def _use_device(device: torch.device) -> None:
    """Make a thread use its rank's GPU: new threads start with GPU 0."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


class _Slot:
    """Memory of one batch, allocated once, pinned for a GPU."""

    def __init__(self, dataset: ShardDataset, batch_size: int, device: torch.device) -> None:
        self._pinned = device.type == "cuda"  # only pinned memory is copied during computation
        # All samples of a batch may have the same layout, so each layout has memory for all.
        empty = partial(torch.empty, dtype=torch.uint16, pin_memory=self._pinned)
        self._groups = [
            {group.name: empty((batch_size, *group.shape)) for group in groups}
            for groups in dataset.layouts
        ]
        # The same memory as numpy arrays: reads fill it without torch, and without a copy.
        self._views = [
            {name: tensor.numpy() for name, tensor in held.items()} for held in self._groups
        ]
        self._copy = torch.cuda.Stream(device) if self._pinned else None  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None
        self._samples = self._layout = self._place = np.empty(0, np.int64)
        self.sample_id = np.empty(0, np.int64)
        self._extra = np.empty((4, 0), np.int64)

    def assign(self, dataset: ShardDataset, samples: Samples, epochs: Samples) -> None:
        """Set the samples to read into this slot, and the epoch of each."""
        self._samples = samples
        self.sample_id = dataset.sample_id[samples]
        self._layout = dataset.layout_of(samples)
        by_layout = np.argsort(self._layout, kind="stable")
        # position of each sample among those of its layout
        self._place = np.empty_like(by_layout)
        starts = np.searchsorted(self._layout[by_layout], np.arange(len(self._groups)))
        self._place[by_layout] = np.arange(len(samples)) - starts[self._layout[by_layout]]
        self._extra = np.stack([dataset.source[samples], self.sample_id, epochs, by_layout])

    def fill(self, dataset: ShardDataset, positions: Samples) -> None:
        """Read the samples at these positions of the batch; run by a reader thread."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy out of this memory must have finished
        for layout, views in enumerate(self._views):
            own = positions[self._layout[positions] == layout]
            if len(own):
                dataset.read_into(self._samples[own], views, self._place[own])

    def copy(self, reads: list[Future[None]], device: torch.device, paired: bool) -> Batch:
        """Wait for the reads, return the batch; a GPU copies on a stream of its own."""
        for read in reads:
            read.result()
        counts = np.bincount(self._layout, minlength=len(self._groups)).tolist()
        groups = [
            {name: tensor[:count] for name, tensor in held.items()}
            for held, count in zip(self._groups, counts, strict=True)
        ]
        extra = torch.from_numpy(self._extra)
        if self._copy is None:
            # the slot's own memory: not copied, hence valid only until it is filled again
            return _joined(groups, counts, extra, paired)
        with torch.cuda.stream(self._copy):
            groups = [
                {name: part.to(device, non_blocking=True) for name, part in held.items()}
                for held in groups
            ]
            extra = extra.pin_memory().to(device, non_blocking=True)
            batch = _joined(groups, counts, extra, paired)
        self._copied = self._copy.record_event()
        return batch

    def hand_over(self, batch: Batch) -> None:
        """Make the computing stream wait for the copy, without blocking the host."""
        if self._copied is not None:
            current = torch.cuda.current_stream(batch.source.device)
            current.wait_event(self._copied)
            # Else the allocator would reuse this memory while the computing stream still reads it.
            for tensor in batch.tensors():
                tensor.record_stream(current)


def _joined(
    groups: list[dict[str, torch.Tensor]], counts: list[int], extra: torch.Tensor, paired: bool
) -> Batch:
    """Return the batch of samples that are stored layout by layout in their memory."""
    source, sample_id, epoch, by_layout = extra
    if len(groups) == 1:
        return Batch(groups[0], source, sample_id, epoch, paired)
    parts, start = [], 0
    for layout, (held, count) in enumerate(zip(groups, counts, strict=True)):
        own = by_layout[start : start + count]
        start += count
        if count:
            part = Batch(held, source[own], sample_id[own], epoch[own], layout=layout)
            parts.append((own, part))
    return Batch({}, source, sample_id, epoch, paired, parts=tuple(parts))


def training_batches(  # noqa: PLR0913 - all settings of a loader
    dataset: ShardDataset,
    sampler: DeterministicBatchSampler,
    pair_sampler: TemporalPairSampler | None = None,
    *,
    start_step: int,
    num_steps: int,
    device: torch.device,
    num_threads: int,
    num_slots: int,
) -> Loader:
    """Return the loader of a rank, from ``start_step`` up to ``num_steps``.

    With ``pair_sampler``, ``sampler`` draws places, and a batch holds two samples of each.
    """

    def plan(number: int) -> tuple[Samples, Samples]:
        """Return the samples of the n-th batch after ``start_step``, and their epochs."""
        planned, epochs = sampler.plan(start_step + number)
        if pair_sampler is None:
            return planned, epochs
        return np.concatenate(pair_sampler.pairs(planned, epochs)), np.tile(epochs, 2)

    pairs = sampler.global_batch_size // sampler.world_size
    return Loader(
        dataset,
        plan,
        num_batches=num_steps - start_step,
        batch_size=2 * pairs if pair_sampler else pairs,
        device=device,
        num_threads=num_threads,
        num_slots=num_slots,
        paired=pair_sampler is not None,
    )
