"""Label subsets are nested, stratified and seeded, and leave no class without a sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr.evaluation.splits import label_subset

SHARES = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0)


def make_truth(counts):
    return np.repeat(np.eye(len(counts), dtype=bool), counts, axis=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(0, 2**31))
def test_each_share_holds_the_smaller_ones_and_every_class(counts, seed):
    truth = make_truth(counts)
    train = np.flatnonzero(np.random.default_rng(seed).random(len(truth)) < 0.8)
    before: set[int] = set()
    for share in SHARES:
        chosen = label_subset(truth, train, share, seed)
        assert before <= set(chosen) <= set(train)
        assert (truth[chosen].any(axis=0) == truth[train].any(axis=0)).all()
        before = set(chosen)
    assert before == set(train)


def test_strata_keep_their_shares():
    truth = make_truth([600, 300, 100])
    chosen = label_subset(truth, np.arange(1000), 0.1, 3)
    np.testing.assert_array_equal(truth[chosen].sum(axis=0), [60, 30, 10])


def test_the_rarest_class_of_several_is_kept_in_proportion():
    truth = np.zeros((400, 2), bool)
    truth[:, 0] = True
    truth[:40, 1] = True
    assert truth[label_subset(truth, np.arange(400), 0.25, 0), 1].sum() == 10


def test_another_seed_draws_other_samples_of_the_same_number():
    truth = make_truth([50, 50])
    first, again, other = (label_subset(truth, np.arange(100), 0.2, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == len(other) == 20
    assert set(first) != set(other)


@pytest.mark.parametrize("share", [0.001, 0.01])
def test_a_share_too_small_for_the_classes_takes_one_of_each(share):
    truth = make_truth([20, 20, 20])
    np.testing.assert_array_equal(
        truth[label_subset(truth, np.arange(60), share, 0)].sum(axis=0), 1
    )
