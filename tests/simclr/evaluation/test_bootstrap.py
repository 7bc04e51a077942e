"""Resamples are seeded, paired and by block; intervals cover what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from simclr.evaluation import bootstrap
from simclr.evaluation.metrics import accuracy


def patches(num_samples):
    return bootstrap.choose_blocks({}, num_samples)


def test_every_resample_counts_as_many_blocks_as_there_are():
    counts = np.concatenate(list(bootstrap.resamples(patches(37), 50, seed=1)))
    assert counts.shape == (50, 37)
    assert (counts.sum(axis=1) == 37).all()
    assert len({tuple(row) for row in counts}) == 50


def test_resamples_depend_on_the_seed_and_not_on_how_many_fit_in_memory(monkeypatch):
    whole = np.concatenate(list(bootstrap.resamples(patches(23), 40, seed=7)))
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 23 * 3)
    pieces = list(bootstrap.resamples(patches(23), 40, seed=7))
    assert len(pieces) == 14
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (next(bootstrap.resamples(patches(23), 40, seed=8)) != whole[:3]).any()


def test_samples_of_one_block_are_drawn_together():
    tiles = np.repeat([f"tile-{i}" for i in range(25)], 4)
    blocks = bootstrap.choose_blocks({"tile": tiles}, 100)
    assert (blocks.unit, blocks.count) == ("tile", 25)
    for counts in bootstrap.resamples(blocks, 10, seed=0):
        by_tile = counts.reshape(-1, 25, 4)
        assert (by_tile == by_tile[:, :, :1]).all()
        assert (by_tile[:, :, 0].sum(axis=1) == 25).all()


@pytest.mark.parametrize(
    ("tiles", "places", "unit"),
    [
        (["a", "b"] * 15, [f"p{i // 2}" for i in range(30)], "patch"),  # 15 places are too few
        (["a", "b"] * 15, ["p0", *(f"p{i}" for i in range(29))], "place"),
        ([""] + ["a"] * 29, ["p"] * 29 + [""], "patch"),  # neither is known everywhere
        ([f"t{i}" for i in range(30)], [f"p{i}" for i in range(30)], "patch"),  # nothing is shared
        (["t0", *(f"t{i}" for i in range(29))], ["p"] * 30, "tile"),
    ],
)
def test_the_coarsest_unit_with_enough_blocks_is_taken(tiles, places, unit):
    units = {"tile": np.array(tiles), "place": np.array(places)}
    assert bootstrap.choose_blocks(units, 30).unit == unit


def test_the_interval_of_an_accuracy_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    share, covered, num_trials = 0.7, 0, 300
    for trial in range(num_trials):
        truth = np.ones((120, 1), bool)
        predicted = rng.random((120, 1)) < share
        chunks = bootstrap.resamples(patches(120), 400, seed=trial)
        distribution = np.concatenate([accuracy(truth, predicted, chunk) for chunk in chunks])
        interval = bootstrap.percentile_interval(float(predicted.mean()), distribution)
        covered += interval.low <= share <= interval.high
    assert 0.91 <= covered / num_trials <= 0.98


def clustered(rng, num_blocks, per_block):
    """Answers (N, 1) to patches whose chance of being right, 0.7 on average, is that of a block."""
    chance = rng.beta(2.1, 0.9, num_blocks).repeat(per_block)
    return rng.random((len(chance), 1)) < chance[:, None]


def test_intervals_by_block_cover_the_truth_where_those_by_patch_do_not():
    rng = np.random.default_rng(1)
    num_blocks, per_block, num_trials = 40, 10, 300
    names = np.repeat([f"block-{i}" for i in range(num_blocks)], per_block)
    units = {
        "block": bootstrap.choose_blocks({"block": names}, len(names)),
        "patch": patches(len(names)),
    }
    assert units["block"].unit == "block"
    covered = dict.fromkeys(units, 0)
    for trial in range(num_trials):
        predicted = clustered(rng, num_blocks, per_block)
        for unit, blocks in units.items():
            chunks = bootstrap.resamples(blocks, 200, seed=trial)
            drawn = np.concatenate(
                [accuracy(np.ones_like(predicted), predicted, chunk) for chunk in chunks]
            )
            interval = bootstrap.percentile_interval(float(predicted.mean()), drawn)
            covered[unit] += interval.low <= 0.7 <= interval.high
    # percentiles of 40 blocks are a little narrow: Student's quantile alone would add 3 %
    assert 0.90 <= covered["block"] / num_trials <= 0.98
    assert covered["patch"] / num_trials < 0.80


def test_two_encoders_of_equal_skill_are_told_apart_once_in_twenty():
    rng = np.random.default_rng(2)
    told, num_trials = 0, 300
    for trial in range(num_trials):
        hard = rng.random((200, 1))  # what one finds hard the other does too: a paired design
        first, second = ((hard + rng.normal(0, 0.3, (200, 1))) < 0.7 for _ in range(2))
        truth = np.ones_like(first)
        chunks = list(bootstrap.resamples(patches(200), 300, seed=trial))
        drawn = np.concatenate(
            [accuracy(truth, first, chunk) - accuracy(truth, second, chunk) for chunk in chunks]
        )
        told += bootstrap.two_sided_p(drawn) < 0.05
    assert 0.02 <= told / num_trials <= 0.09


def test_the_corrected_interval_covers_the_difference_of_repeated_splits():
    # Two classifiers of equal skill, scored on five overlapping test halves of the same 200
    # samples: without the correction the interval would miss zero far more often than 1 in 20.
    rng = np.random.default_rng(4)
    missed = {0.0: 0, 1.0: 0}
    for _ in range(400):
        gain = rng.normal(size=200)
        halves = [rng.permutation(200)[:100] for _ in range(5)]
        differences = np.array([gain[half].mean() for half in halves])
        for ratio in missed:
            missed[ratio] += bootstrap.repeated_split_interval(differences, ratio).excludes_zero
    assert missed[1.0] / 400 < 0.08
    assert missed[0.0] / 400 > 0.15


def test_student_quantiles_equal_scipy():
    for degrees in (*range(1, 60), 200):
        expected = stats.t.ppf(0.975, degrees)
        assert bootstrap.student_quantile(degrees) == pytest.approx(expected, rel=2e-3)
        if degrees <= 30:
            assert bootstrap.student_quantile(degrees) == pytest.approx(expected, abs=1e-4)


def test_undefined_resamples_are_left_out_of_an_interval():
    interval = bootstrap.percentile_interval(0.5, np.array([np.nan, 0.5, 0.5]))
    assert (interval.low, interval.high) == (0.5, 0.5)
    assert math.isnan(bootstrap.percentile_interval(0.5, np.array([np.nan])).low)


def test_one_seed_has_no_interval_over_seeds():
    interval = bootstrap.repeated_split_interval(np.array([0.3]), 0.5)
    assert interval.value == pytest.approx(0.3)
    assert math.isnan(interval.low)
    assert not interval.excludes_zero
