"""Patches of one place on several dates come in; the two of them that make a pair go out.

With these the order of a run is one over places: an epoch shows every place once, so two dates of
one place never meet in a batch, where each would be taken for a negative of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from simclr.data.dataset import ShardDataset
from simclr.data.sampler import Samples
from simclr.philox import uniforms

_STREAM = 2  # where a draw of views has the view: 0 and 1 are taken


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
        stream = torch.full_like(ids, _STREAM)
        drawn = uniforms(self.seed, torch.from_numpy(epochs), ids, stream, 2)
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
