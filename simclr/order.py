"""The order of samples as a pure function: (seed, epoch, position) in, sample out, in O(1).

A keyed bijection takes the place of a shuffled list: nothing to build at the start of an epoch,
nothing to save, and any world size that divides the global batch sees the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 6
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)


@dataclass(frozen=True, slots=True)
class Order:
    """Which samples a rank reads at which step.

    The remainder of ``num_samples`` by ``global_batch_size`` is left out; it differs every epoch.

    Raises:
        ValueError: the batch does not divide over the ranks, or is larger than the corpus.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

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
                f"{self.num_samples} patches; lower it or give more shards"
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
        per_rank = self.global_batch_size // self.world_size
        start = (step % self.steps_per_epoch) * self.global_batch_size + self.rank * per_rank
        positions = np.arange(start, start + per_rank, dtype=np.int64)
        return permute(positions, self.num_samples, self.seed, self.epoch(step))


def permute(positions: Samples, num: int, seed: int, epoch: int) -> Samples:
    """Map positions in [0, num) to samples in [0, num), one to one, differently every epoch.

    A balanced Feistel network on the next even number of bits, walked until the value falls
    inside the range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    if num == 1:
        return np.zeros_like(positions)
    half = np.uint64(max(1, ((num - 1).bit_length() + 1) // 2))
    keys = _round_keys(seed, epoch)
    values = _feistel(positions.astype(np.uint64), half, keys)
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
    # One-element arrays, since numpy warns of the intended overflow in scalars only.
    start = _mix(np.array([seed], np.uint64)) ^ _mix(np.array([~epoch & (2**64 - 1)], np.uint64))
    return _mix(start + _MIX[0] * np.arange(1, _ROUNDS + 1, dtype=np.uint64))


def _mix(words: _Words) -> _Words:
    # The 64-bit finaliser of MurmurHash3: every input bit reaches every output bit.
    words = (words ^ (words >> _SHIFT)) * _MIX[0]
    words = (words ^ (words >> _SHIFT)) * _MIX[1]
    mixed: _Words = words ^ (words >> _SHIFT)
    return mixed
