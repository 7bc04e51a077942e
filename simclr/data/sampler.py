"""The samples of a rank at a step: a function of seed, step and world size alone.

No state is saved, and all world sizes that divide the global batch size see the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from simclr.config import require, require_even_share
from simclr.data.dataset import ShardDataset
from simclr.philox import Philox

Samples = npt.NDArray[np.int64]

_DATE_STREAM = 2  # Philox counter word for drawing dates; views use 0 and 1


@dataclass(frozen=True, slots=True)
class DeterministicBatchSampler:
    """Samples of a rank at each step, reshuffled every epoch.

    Without ``draws``, an epoch shows every sample once, except for the remainder of ``num_samples``
    by ``global_batch_size``, which differs every epoch. With ``draws``, an epoch has the same
    length, but that many samples from each source, less the remainder; after every epoch, the
    number of draws differs by at most one among a source's samples, counting the remainder. With
    temporal pairs, a "sample" is a place, from which ``TemporalPairSampler`` draws two samples.

    Raises:
        ValueError: the batch is not divisible by the ranks, or larger than the data set.
    """

    num_samples: int  # of all sources; samples of a source are contiguous
    global_batch_size: int  # pairs per step over all ranks
    seed: int  # seed of the shuffling
    rank: int = 0  # rank that reads the samples
    world_size: int = 1
    sizes: tuple[int, ...] = ()  # samples per source; needed only with ``draws``
    draws: tuple[int, ...] = ()  # draws per source and epoch; they sum to ``num_samples``
    unit: str = "patches"  # name of the samples in errors

    def __post_init__(self) -> None:
        require_even_share(self.global_batch_size, self.world_size)
        require(
            self.num_samples >= self.global_batch_size,
            f"data.global_batch_size is {self.global_batch_size} but the selected shards hold "
            f"{self.num_samples} {self.unit}; lower it or give more shards",
        )

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete global batches in an epoch."""
        return self.num_samples // self.global_batch_size

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, from 0."""
        return step // self.steps_per_epoch

    def plan(self, step: int) -> tuple[Samples, Samples]:
        """Return this rank's samples at a step, and how often each was read before.

        (global_batch_size / world_size,) int64 each.
        """
        per_rank = self.global_batch_size // self.world_size
        # Ranks read consecutive slices of one global batch, which is the same for any number of
        # ranks.
        start = (step % self.steps_per_epoch) * self.global_batch_size + self.rank * per_rank
        epoch = self.epoch(step)
        samples, passes = _epoch_order(self.num_samples, self.seed, epoch, self.sizes, self.draws)
        batch = slice(start, start + per_rank)
        return samples[batch].copy(), passes[batch].copy()


# Two epochs: batches are read ahead across the end of an epoch.
@lru_cache(maxsize=2)
def _epoch_order(
    num_samples: int, seed: int, epoch: int, sizes: tuple[int, ...], draws: tuple[int, ...]
) -> tuple[Samples, Samples]:
    """Return all samples of an epoch in order, and how often each was read before."""
    turns = permutation(num_samples, seed, epoch)
    if not draws:
        return turns, np.full_like(turns, epoch)
    samples, passes = np.empty_like(turns), np.empty_like(turns)
    first_turn = first_sample = 0
    for source, (size, drawn) in enumerate(zip(sizes, draws, strict=True)):
        mine = (turns >= first_turn) & (turns < first_turn + drawn)
        # Draws from a source are counted across all epochs; each pass is a separate shuffle.
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
    """Apportion ``sum(sizes)`` draws to the sources by weight, by the largest remainder method.

    Raises:
        ValueError: a source has no samples.
    """
    require(
        all(sizes),
        f"data.weights is {list(weights)}, but the folders of shards hold {list(sizes)} selected "
        "patches or places; leave out the empty ones, or set data.splits",
    )
    exact = np.array(weights) / sum(weights) * sum(sizes)
    counts = np.floor(exact).astype(np.int64)
    missing = sum(sizes) - int(counts.sum())
    # Stable: equal remainders are ordered by position.
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return tuple(counts.tolist())


class TemporalPairSampler:
    """Draws pairs of samples of one place, on two dates if possible.

    ``sizes`` holds the number of places per source. If sources are ``weighted``, every place must
    belong to a single source.

    Raises:
        ValueError: no place has two dates, or a place is in two weighted sources.
    """

    def __init__(self, dataset: ShardDataset, seed: int, *, weighted: bool) -> None:
        place = dataset.places()
        # The day alone: the two releases of BigEarthNet differ in the time of day of a scene.
        _, date = np.unique(dataset.index("acquired").astype("U10"), return_inverse=True)
        self._members = members = np.lexsort((date, place))  # samples ordered by place, then date
        place, date = place[members], date[members]
        new_place = np.diff(place, prepend=-1) != 0
        new_date = new_place | (np.diff(date, prepend=-1) != 0)
        first, dates = np.flatnonzero(new_place), np.flatnonzero(new_date)
        number = np.cumsum(new_date) - 1  # number of each member's (place, date)
        source = dataset.source[members]
        # (P + 1,) start of each place among the members, and the end of the last one
        self._start = np.append(first, len(members))
        # (num_samples,) start and end, among the members, of each member's date
        self._date_start = dates[number]
        self._date_end = np.append(dates[1:], len(members))[number]
        # (P,) sample id of each place's first sample, the key of its draws
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
        """Number of places."""
        return len(self._place_id)

    @property
    def num_seasonal(self) -> int:
        """Number of places with two dates or more."""
        return int((self._date_end[self._start[:-1]] < self._start[1:]).sum())

    def pairs(self, places: Samples, epochs: Samples) -> tuple[Samples, Samples]:
        """Draw two samples of each place, on two dates if it has two: (B,) each.

        ``places`` (B,) are below ``num_places``; ``epochs`` (B,) are how often each was shown
        before. A place with a single date gives the same sample twice.
        """
        u = self._draw(places, epochs)
        start, count = self._start[places], self._start[places + 1] - self._start[places]
        first = start + (u[:, 0] * count).astype(np.int64)
        end = self._date_end[first]
        others = count - (end - self._date_start[first])
        # Count from the end of the first sample's date, cyclically: any sample of another date.
        onward = end - start + (u[:, 1] * others).astype(np.int64)
        second = np.where(others > 0, start + onward % count, first)
        return self._members[first], self._members[second]

    def _draw(self, places: Samples, epochs: Samples) -> npt.NDArray[np.float64]:
        """Return (B, 2) uniforms, in float64 so that their product with a count is below it."""
        ids = torch.from_numpy(self._place_id[places])
        stream = torch.full_like(ids, _DATE_STREAM)
        drawn = self._generator.uniforms(torch.from_numpy(epochs), ids, stream, 2)
        return drawn.numpy().astype(np.float64)
