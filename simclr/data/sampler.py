"""Which samples a rank reads at a step: a function of seed, step and world size alone.

Nothing of it is saved, and any world size that divides the global batch sees the same batches.
With temporal pairs the sampler orders locations, and each gives two samples of different dates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from simclr.data.dataset import ShardDataset
from simclr.philox import Philox

Samples = npt.NDArray[np.int64]

_DATE_STREAM = 2  # Philox counter word of the draw of dates; views take 0 and 1


@dataclass(frozen=True, slots=True)
class DeterministicBatchSampler:
    """Samples of a rank at each step, shuffled anew every epoch.

    Without ``draws`` an epoch shows every sample once, but for the remainder of ``num_samples`` by
    ``global_batch_size``, which differs every epoch. With ``draws`` an epoch is as long, and takes
    that many samples from each source; no sample of a source is read again before all of its
    others, also across epochs.

    With temporal pairs a "sample" is a location (see ``TemporalPairSampler``).

    Attributes:
        num_samples: samples of all sources; those of a source stand together.
        global_batch_size: pairs a step over all ranks.
        seed: of the shuffling.
        rank: whose samples.
        world_size: number of ranks.
        sizes: samples of each source; needed with ``draws`` only.
        draws: samples taken from each source in an epoch; they sum to ``num_samples``.
        unit: what a sample is called in an error.

    Raises:
        ValueError: the batch does not divide over the ranks, or is larger than the data set.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    sizes: tuple[int, ...] = ()
    draws: tuple[int, ...] = ()
    unit: str = "patches"

    def __post_init__(self) -> None:
        batch, ranks = self.global_batch_size, self.world_size
        if batch % ranks:
            below, above = batch // ranks * ranks, (batch // ranks + 1) * ranks
            raise ValueError(
                f"data.global_batch_size is {batch} but {ranks} ranks need a multiple of {ranks}; "
                f"use {below or above} or {above}"
            )
        if self.num_samples < batch:
            raise ValueError(
                f"data.global_batch_size is {batch} but the selected shards hold "
                f"{self.num_samples} {self.unit}; lower it or give more shards"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass."""
        return self.num_samples // self.global_batch_size

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, to which a step belongs."""
        return step // self.steps_per_epoch

    def samples(self, step: int) -> Samples:
        """Return this rank's samples at a step: (global_batch_size / world_size,) int64."""
        return self.plan(step)[0]

    def plan(self, step: int) -> tuple[Samples, Samples]:
        """Return this rank's samples at a step, and how often each was read before."""
        per_rank = self.global_batch_size // self.world_size
        # Ranks take neighbouring slices of one global batch: another number of ranks cuts the same
        # batch elsewhere.
        start = (step % self.steps_per_epoch) * self.global_batch_size + self.rank * per_rank
        epoch = self.epoch(step)
        samples, passes = _epoch_order(self.num_samples, self.seed, epoch, self.sizes, self.draws)
        batch = slice(start, start + per_rank)
        return samples[batch].copy(), passes[batch].copy()


# Two epochs: batches are read ahead across the end of one.
@lru_cache(maxsize=2)
def _epoch_order(
    num_samples: int, seed: int, epoch: int, sizes: tuple[int, ...], draws: tuple[int, ...]
) -> tuple[Samples, Samples]:
    """Return all samples of an epoch in their order, and how often each was read before."""
    turns = permutation(num_samples, seed, epoch)
    if not draws:
        return turns, np.full_like(turns, epoch)
    samples, passes = np.empty_like(turns), np.empty_like(turns)
    first_turn = first_sample = 0
    for source, (size, drawn) in enumerate(zip(sizes, draws, strict=True)):
        mine = (turns >= first_turn) & (turns < first_turn + drawn)
        # Draws from a source are counted on through all epochs: pass p is a shuffle of its own.
        count = epoch * drawn + turns[mine] - first_turn
        passes[mine] = count // size
        chosen = np.empty_like(count)
        for number in np.unique(count // size).tolist():
            of_pass = count // size == number
            chosen[of_pass] = permutation(size, seed, number, source)[count[of_pass] % size]
        samples[mine] = first_sample + chosen
        first_turn, first_sample = first_turn + drawn, first_sample + size
    return samples, passes


def permutation(num: int, seed: int, epoch: int, *more: int) -> Samples:
    """Return the numbers below ``num``, (num,) int64, shuffled by seed, epoch and more keys."""
    return np.random.default_rng((seed, epoch, *more)).permutation(num)


def draws_per_source(sizes: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of ``sum(sizes)`` draws fall to each source, by largest remainder."""
    exact = np.array(weights) / sum(weights) * sum(sizes)
    counts = np.floor(exact).astype(np.int64)
    missing = sum(sizes) - int(counts.sum())
    # Stable: equal remainders go by position, not by the whim of a sort.
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return tuple(counts.tolist())


@dataclass(frozen=True, slots=True)
class TemporalPairSampler:
    """The selected samples by place, and within a place by date.

    Attributes:
        members: (num_samples,) int64, numbers of the samples in that order.
        start: (P + 1,) int64, where each place begins among the members, and the last one's end.
        date_start: (num_samples,) int64, where the date of each member begins among them.
        date_end: (num_samples,) int64, and where it ends.
        place_id: (P,) int64, sample id of each place's first sample: what its draws go by.
        sizes: places of each source.
        seed: another seed draws other dates.
    """

    members: Samples
    start: Samples
    date_start: Samples
    date_end: Samples
    place_id: Samples
    sizes: tuple[int, ...]
    seed: int

    @property
    def num_places(self) -> int:
        """Number of places: pairs in an epoch."""
        return len(self.place_id)

    @property
    def num_seasonal(self) -> int:
        """Number of places with two dates or more."""
        return int((self.date_end[self.start[:-1]] < self.start[1:]).sum())

    def pairs(self, places: Samples, epochs: Samples) -> tuple[Samples, Samples]:
        """Draw two samples of each place, of two dates where there are two.

        Args:
            places: (B,) int64, numbers below ``num_places``.
            epochs: (B,) int64, how often each was shown before.

        Returns:
            The samples of the first views and those of the second views, (B,) each. A place with
            one date gives one sample twice.
        """
        u = self._draw(places, epochs)
        start, count = self.start[places], self.start[places + 1] - self.start[places]
        first = start + (u[:, 0] * count).astype(np.int64)
        end = self.date_end[first]
        others = count - (end - self.date_start[first])
        # Counted on from the end of its own date and round the place: any sample of another date.
        onward = end - start + (u[:, 1] * others).astype(np.int64)
        second = np.where(others > 0, start + onward % count, first)
        return self.members[first], self.members[second]

    def _draw(self, places: Samples, epochs: Samples) -> npt.NDArray[np.float64]:
        """Return (B, 2) uniforms; in float64 their product with a count stays below the count."""
        ids = torch.from_numpy(self.place_id[places])
        stream = torch.full_like(ids, _DATE_STREAM)
        drawn = Philox(self.seed).uniforms(torch.from_numpy(epochs), ids, stream, 2)
        return drawn.numpy().astype(np.float64)


def temporal_pairs_of(dataset: ShardDataset, seed: int, *, weighted: bool) -> TemporalPairSampler:
    """Sort the samples of a dataset by place and date.

    Args:
        dataset: selected samples.
        seed: drives the draws.
        weighted: sources are mixed by weights, so that every place must be of one source.

    Raises:
        ValueError: no place has two dates, or a place is in two sources that are weighted.
    """
    place = dataset.places()
    # A day, not a time of day: both releases of BigEarthNet give one scene times of its own.
    _, date = np.unique(dataset.index("acquired").astype("U10"), return_inverse=True)
    members = np.lexsort((date, place))
    place, date = place[members], date[members]
    new_place = np.diff(place, prepend=-1) != 0
    new_date = new_place | (np.diff(date, prepend=-1) != 0)
    start, dates = np.flatnonzero(new_place), np.flatnonzero(new_date)
    number = np.cumsum(new_date) - 1  # of each member's date among all
    source = dataset.source[members]
    pair_sampler = TemporalPairSampler(
        members,
        np.append(start, len(members)),
        dates[number],
        np.append(dates[1:], len(members))[number],
        dataset.sample_id[members[start]],
        tuple(np.bincount(source[start], minlength=len(dataset.sources)).tolist()),
        seed,
    )
    _refuse_without_dates(pair_sampler, dataset)
    if weighted:
        _refuse_shared_places(dataset, source != source[start][place], members)
    return pair_sampler


def _refuse_without_dates(pair_sampler: TemporalPairSampler, dataset: ShardDataset) -> None:
    if pair_sampler.num_seasonal:
        return
    named = int((dataset.index("place") != "").sum())
    raise ValueError(
        f"data.positives is season, but no place in {', '.join(dataset.sources)} has two dates "
        f"({named} of {dataset.num_samples} selected patches name their place); pack several dates "
        "of one ground, or set data.positives=same"
    )


def _refuse_shared_places(
    dataset: ShardDataset, shared: npt.NDArray[np.bool_], members: Samples
) -> None:
    if shared.any():
        example = dataset.index("place")[members[shared][0]]
        raise ValueError(
            f"data.weights is given and data.positives is season, but {shared.sum()} patches lie "
            f"in places of another source ({example} is one); leave data.weights empty, or leave "
            "one of the sources out of shards"
        )
