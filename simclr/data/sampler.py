"""The order of samples as a pure function: (seed, epoch, position) in, sample out, in O(1).

A keyed bijection takes the place of a shuffled list: nothing to build at the start of an epoch,
nothing to save, and any world size that divides the global batch sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

# Four rounds are enough for a Feistel network of strong round functions (Luby and Rackoff 1988);
# ours has halves of ten bits for a million samples, and gets two more.
_ROUNDS = 6
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)


@dataclass(frozen=True, slots=True)
class DeterministicBatchSampler:
    """Which samples a rank reads at which step.

    Without ``draws`` an epoch shows every sample once, but for the remainder of ``num_samples`` by
    ``global_batch_size``, which differs every epoch. With ``draws`` an epoch is as long, and takes
    that many samples from each source; no sample of a source is read again before all of its
    others, also across epochs.

    What is ordered may as well be places (see ``simclr.data.temporal_pairs``).

    Attributes:
        num_samples: samples of all sources; those of a source stand together.
        global_batch_size: pairs a step over all ranks.
        seed: another seed is another order.
        rank: whose samples.
        world_size: number of ranks.
        sizes: samples of each source; needed with ``draws`` only.
        draws: samples taken from each source in an epoch; they sum to ``num_samples``.
        unit: what a sample is called in an error.

    Raises:
        ValueError: the batch does not divide over the ranks, or is larger than the dataset.
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
        positions = np.arange(start, start + per_rank, dtype=np.int64)
        epoch = self.epoch(step)
        turns = permute(positions, self.num_samples, self.seed, epoch)
        if not self.draws:
            return turns, np.full_like(turns, epoch)
        return self._of_sources(turns, epoch)

    def _of_sources(self, turns: Samples, epoch: int) -> tuple[Samples, Samples]:
        """Turn number t of an epoch is the (t - start)-th draw from the source it falls into."""
        samples, passes = np.empty_like(turns), np.empty_like(turns)
        first_turn = first_sample = 0
        for number, (size, draws) in enumerate(zip(self.sizes, self.draws, strict=True)):
            mine = (turns >= first_turn) & (turns < first_turn + draws)
            # Draws of a source are counted on through all epochs, and dealt out in passes.
            count = epoch * draws + turns[mine] - first_turn
            passes[mine] = count // size
            # Another seed a source, or sources of one size would be dealt in the same order.
            samples[mine] = first_sample + _dealt(count, size, self.seed ^ (number + 1))
            first_turn, first_sample = first_turn + draws, first_sample + size
        return samples, passes


def shares(sizes: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of ``sum(sizes)`` draws fall to each source, by largest remainder."""
    exact = np.array(weights) / sum(weights) * sum(sizes)
    counts = np.floor(exact).astype(np.int64)
    missing = sum(sizes) - int(counts.sum())
    # Stable: equal remainders go by position, not by the whim of a sort.
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return tuple(counts.tolist())


def _dealt(count: Samples, size: int, seed: int) -> Samples:
    """Return the samples that the draws number ``count`` give, each pass in an order of its own."""
    dealt = np.empty_like(count)
    for number in np.unique(count // size):
        mine = count // size == number
        dealt[mine] = permute(count[mine] % size, size, seed, int(number))
    return dealt


def permute(positions: Samples, num: int, seed: int, epoch: int) -> Samples:
    """Map positions in [0, num) to samples in [0, num), one to one, differently every epoch.

    A balanced Feistel network on the next even number of bits, walked until the value falls
    inside the range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    if num == 1:
        return np.zeros_like(positions)
    # Bits of each half. 4^half is below 4 num, so a walk takes less than four steps on average.
    half = np.uint64(max(1, ((num - 1).bit_length() + 1) // 2))
    keys = _round_keys(seed, epoch)
    values = _feistel(positions.astype(np.uint64), half, keys)
    # A bijection of the larger range, followed until it comes back inside, is one of the smaller.
    while (outside := values >= num).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: _Words, half: np.uint64, keys: _Words) -> _Words:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _round_keys(seed: int, epoch: int) -> _Words:
    # The epoch is complemented, or seed 3 in epoch 5 would be seed 5 in epoch 3.
    # One-element arrays, since numpy warns of the intended overflow in scalars only.
    start = _mix(np.array([seed], np.uint64)) ^ _mix(np.array([~epoch & (2**64 - 1)], np.uint64))
    return _mix(start + _MIX[0] * np.arange(1, _ROUNDS + 1, dtype=np.uint64))


def _mix(words: _Words) -> _Words:
    # The 64-bit finaliser of MurmurHash3: every input bit reaches every output bit.
    words = (words ^ (words >> _SHIFT)) * _MIX[0]
    words = (words ^ (words >> _SHIFT)) * _MIX[1]
    mixed: _Words = words ^ (words >> _SHIFT)
    return mixed
