"""Which samples a rank reads at a step: a function of seed, step and world size alone.

Nothing of it is saved, and any world size that divides the global batch sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from simclr.config import require
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
    others, also across epochs. With temporal pairs a "sample" is a location, of which
    ``TemporalPairSampler`` gives two samples.

    Raises:
        ValueError: the batch does not divide over the ranks, or is larger than the data set.
    """

    num_samples: int  # of all sources; those of a source stand together
    global_batch_size: int  # pairs a step over all ranks
    seed: int  # of the shuffling
    rank: int = 0  # whose samples
    world_size: int = 1
    sizes: tuple[int, ...] = ()  # samples of each source; needed with ``draws`` only
    draws: tuple[int, ...] = ()  # from each source in an epoch; they sum to ``num_samples``
    unit: str = "patches"  # what a sample is called in an error

    def __post_init__(self) -> None:
        batch, ranks = self.global_batch_size, self.world_size
        if batch % ranks:
            below, above = batch // ranks * ranks, (batch // ranks + 1) * ranks
            raise ValueError(
                f"data.global_batch_size is {batch} but {ranks} ranks need a multiple of {ranks}; "
                f"use {below or above} or {above}"
            )
        require(
            self.num_samples >= batch,
            f"data.global_batch_size is {batch} but the selected shards hold "
            f"{self.num_samples} {self.unit}; lower it or give more shards",
        )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass."""
        return self.num_samples // self.global_batch_size

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, to which a step belongs."""
        return step // self.steps_per_epoch

    def plan(self, step: int) -> tuple[Samples, Samples]:
        """Return this rank's samples at a step, and how often each was read before.

        (global_batch_size / world_size,) int64 each.
        """
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


class TemporalPairSampler:
    """The selected samples of a data set by place, and within a place by date.

    ``sizes`` has the places of each source. Where sources are ``weighted``, every place must be of
    one source.

    Raises:
        ValueError: no place has two dates, or a place is in two sources that are weighted.
    """

    def __init__(self, dataset: ShardDataset, seed: int, *, weighted: bool) -> None:
        place = dataset.places()
        # A day, not a time of day: both releases of BigEarthNet give one scene times of its own.
        _, date = np.unique(dataset.index("acquired").astype("U10"), return_inverse=True)
        self._members = members = np.lexsort((date, place))  # numbers of the samples in this order
        place, date = place[members], date[members]
        new_place = np.diff(place, prepend=-1) != 0
        new_date = new_place | (np.diff(date, prepend=-1) != 0)
        first, dates = np.flatnonzero(new_place), np.flatnonzero(new_date)
        number = np.cumsum(new_date) - 1  # of each member's date among all
        source = dataset.source[members]
        # (P + 1,) where each place begins among the members, and the last one's end
        self._start = np.append(first, len(members))
        # (num_samples,) where the date of each member begins and ends among them
        self._date_start = dates[number]
        self._date_end = np.append(dates[1:], len(members))[number]
        # (P,) sample id of each place's first sample: what its draws go by
        self._place_id = dataset.sample_id[members[first]]
        counts = np.bincount(source[first], minlength=len(dataset.sources))
        self.sizes: tuple[int, ...] = tuple(counts.tolist())
        self._generator = Philox(seed)
        names = dataset.index("place")
        require(
            self.num_seasonal > 0,
            f"data.positives is season, but no place in {', '.join(dataset.sources)} has two dates "
            f"({(names != '').sum()} of {dataset.num_samples} selected patches name their place); "
            "pack several dates of one ground, or set data.positives=same",
        )
        shared = source != source[first][place]
        if weighted and shared.any():
            raise ValueError(
                f"data.weights is given and data.positives is season, but {shared.sum()} patches "
                f"lie in places of another source ({names[members[shared][0]]} is one); leave "
                "data.weights empty, or leave one of the sources out of shards"
            )

    @property
    def num_places(self) -> int:
        """Number of places: pairs in an epoch."""
        return len(self._place_id)

    @property
    def num_seasonal(self) -> int:
        """Number of places with two dates or more."""
        return int((self._date_end[self._start[:-1]] < self._start[1:]).sum())

    def pairs(self, places: Samples, epochs: Samples) -> tuple[Samples, Samples]:
        """Draw two samples of each place, of two dates where there are two: (B,) each.

        ``places`` (B,) are below ``num_places``, ``epochs`` (B,) say how often each was shown
        before. A place with one date gives one sample twice.
        """
        u = self._draw(places, epochs)
        start, count = self._start[places], self._start[places + 1] - self._start[places]
        first = start + (u[:, 0] * count).astype(np.int64)
        end = self._date_end[first]
        others = count - (end - self._date_start[first])
        # Counted on from the end of its own date and round the place: any sample of another date.
        onward = end - start + (u[:, 1] * others).astype(np.int64)
        second = np.where(others > 0, start + onward % count, first)
        return self._members[first], self._members[second]

    def _draw(self, places: Samples, epochs: Samples) -> npt.NDArray[np.float64]:
        """Return (B, 2) uniforms; in float64 their product with a count stays below the count."""
        ids = torch.from_numpy(self._place_id[places])
        stream = torch.full_like(ids, _DATE_STREAM)
        drawn = self._generator.uniforms(torch.from_numpy(epochs), ids, stream, 2)
        return drawn.numpy().astype(np.float64)
