"""Resamples are seeded, paired and by block; intervals cover what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simclr.evaluation import bootstrap
from simclr.evaluation.metrics import accuracy, tally


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
    ("tiles", "cells", "unit"),
    [
        (["a", "b"] * 15, [f"p{i // 2}" for i in range(30)], "patch"),  # 15 cells are too few
        (["a", "b"] * 15, ["p0", *(f"p{i}" for i in range(29))], "cell"),
        ([""] + ["a"] * 29, ["p"] * 29 + [""], "patch"),  # neither is known everywhere
        ([f"t{i}" for i in range(30)], [f"p{i}" for i in range(30)], "patch"),  # nothing is shared
        (["t0", *(f"t{i}" for i in range(29))], ["p"] * 30, "tile"),
    ],
)
def test_the_coarsest_unit_with_enough_blocks_is_taken(tiles, cells, unit):
    units = {"tile": np.array(tiles), "cell": np.array(cells)}
    assert bootstrap.choose_blocks(units, 30).unit == unit


def clustered(rng, num_blocks, per_block):
    """Predictions (N, 1), right with the chance of their block, 0.7 on average."""
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
    for result in range(num_trials):
        predicted = clustered(rng, num_blocks, per_block)
        for unit, blocks in units.items():
            drawn, left_out = (
                np.concatenate(
                    [accuracy(np.ones_like(predicted), predicted, tally(chunk)) for chunk in chunks]
                )
                for chunks in (
                    bootstrap.resamples(blocks, 200, seed=result),
                    bootstrap.left_out_counts(blocks),
                )
            )
            value = float(predicted.mean())
            interval = bootstrap.score_interval(value, drawn, left_out, blocks.count)
            covered[unit] += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered["block"] / num_trials <= 0.98
    assert covered["patch"] / num_trials < 0.80


def test_two_encoders_of_equal_skill_are_told_apart_once_in_twenty():
    rng = np.random.default_rng(2)
    told, num_trials = 0, 300
    for result in range(num_trials):
        hard = rng.random((200, 1))  # what one finds hard the other does too: a paired design
        first, second = ((hard + rng.normal(0, 0.3, (200, 1))) < 0.7 for _ in range(2))
        truth = np.ones_like(first)
        chunks = list(bootstrap.resamples(patches(200), 300, seed=result))
        drawn = np.concatenate(
            [
                accuracy(truth, first, tally(chunk)) - accuracy(truth, second, tally(chunk))
                for chunk in chunks
            ]
        )
        value = float(first.mean() - second.mean())
        told += bootstrap.difference_interval(value, drawn, 200)[1] < 0.05
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


def test_undefined_resamples_are_left_out_and_equal_ones_give_no_interval():
    draws, left_out = np.array([np.nan, 0.4, 0.5, 0.6]), np.array([0.45, 0.55, np.nan])
    interval = bootstrap.score_interval(0.5, draws, left_out, 30)
    assert 0 <= interval.low <= 0.5 <= interval.high <= 1
    for alike in (np.array([0.5, 0.5]), np.array([np.nan, 0.5])):
        assert math.isnan(bootstrap.score_interval(0.5, alike, left_out, 30).low)
        interval, p_value = bootstrap.difference_interval(0.5, alike, 30)
        assert math.isnan(interval.low)
        assert p_value == 1
        assert not interval.excludes_zero


@pytest.mark.parametrize("num_samples", [30, 250, 1000])
def test_every_sample_is_left_out_once(num_samples):
    counts = np.concatenate(list(bootstrap.left_out_counts(patches(num_samples))))
    assert len(counts) == min(num_samples, 250)
    assert (counts.sum(axis=0) == len(counts) - 1).all()


def test_one_seed_has_no_interval_over_seeds():
    interval = bootstrap.repeated_split_interval(np.array([0.3]), 0.5)
    assert interval.value == pytest.approx(0.3)
    assert math.isnan(interval.low)
    assert not interval.excludes_zero
