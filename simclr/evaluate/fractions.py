"""Training samples and their truth come in; nested, stratified, seeded subsets go out."""

from __future__ import annotations

import numpy as np

from simclr.evaluate.ranking import BoolArray, Indices
from simclr.evaluate.splits import strata_of


def label_subset(truth: BoolArray, train: Indices, fraction: float, seed: int) -> Indices:
    """Return a share of the training samples, sorted; a larger share holds the smaller ones.

    Strata are the rarest class of each sample. Every stratum keeps one sample at least, so that a
    small share still has each class to learn from; it may then be larger than asked for.

    Args:
        truth: (N, C) of all samples.
        train: (n,) the training samples.
        fraction: in (0, 1].
        seed: draws the order in which samples join.
    """
    if fraction >= 1:
        return train
    order = np.random.default_rng(seed).permutation(len(train))
    strata = strata_of(truth[train][order], np.arange(len(train)))
    place, sizes = _places(strata)
    first = place == 0
    # by how far down its stratum a sample stands, and the first of every stratum before all
    joining = np.lexsort((sizes, place / sizes, ~first))
    count = max(round(fraction * len(train)), int(first.sum()))
    return np.sort(train[order[joining[:count]]])


def _places(strata: Indices) -> tuple[Indices, Indices]:
    """Return for each sample its place in its stratum, from 0, and the stratum's size."""
    by_stratum = np.argsort(strata, kind="stable")
    ordered = strata[by_stratum]
    starts = np.searchsorted(ordered, ordered)
    place, sizes = np.empty_like(starts), np.empty_like(starts)
    place[by_stratum] = np.arange(len(strata)) - starts
    sizes[by_stratum] = np.searchsorted(ordered, ordered, side="right") - starts
    return place, sizes
