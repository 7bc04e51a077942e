"""Known truths are found, chance is not taken for one, and the table of 2021 yields its figures."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from jobs.study.analysis import (
    Estimate,
    Score,
    Table,
    arm_means,
    chance_of_bottom,
    differences,
    lowest_quarter,
    operation_effects,
    published,
    replicates_needed,
    spearman_brown,
    stability,
    tabulate,
)
from jobs.study.arms import couplet_name
from jobs.study.report import effects_verdict, ranking_verdict
from simclr.augment.parameters import BANNED, NINE

COUPLETS = [couplet_name(*pair) for pair in combinations(NINE, 2)]


def planted(effects, seeds=5, noise=0.004, shuffled=False):
    """Return scores of all couplets in which operations add what ``effects`` says."""
    generator = np.random.default_rng(3)
    grid = np.full((36, 2, seeds), 0.8) + generator.normal(0, noise, (36, 2, seeds))
    for row, name in enumerate(COUPLETS):
        grid[row] += sum(effects.get(operation, 0) for operation in name.split("+"))
    if shuffled:
        grid = np.stack([generator.permutation(grid[:, :, k]) for k in range(seeds)], axis=2)
    return Table(tuple(COUPLETS), ("regular", "extended"), tuple(range(seeds)), grid)


def test_the_published_table_yields_its_known_correlations():
    table = tabulate(published())
    found = stability(table)
    assert table.grid.shape == (36, 2, 1)
    assert round(found.spearman_labels, 2) == 0.10
    assert round(found.pearson_labels, 2) == 0.13
    assert round(found.reliability_labels, 2) == 0.23
    assert math.isnan(found.reliability_seeds)  # one run each: seeds say nothing


def test_the_lowest_quarter_of_the_published_table_is_what_was_banned():
    lowest = lowest_quarter(arm_means(tabulate(published())))
    assert {frozenset(name.split("+")) for name in lowest} == BANNED


def test_label_sets_that_disagree_are_said_to_and_given_no_reliability():
    table = planted({"blur": -0.05})
    table.grid[:, 1] = 1.6 - table.grid[:, 0]
    found = stability(table)
    assert found.pearson_labels == pytest.approx(-1)
    said = ranking_verdict(found, len(table.seeds))[1]
    assert "Pearson -1.00; no better than chance." in said
    assert (
        "reliability" in ranking_verdict(stability(planted({"blur": -0.05})), len(table.seeds))[1]
    )


def test_effects_that_are_all_beyond_chance_leave_no_others():
    clear = [Estimate(name, 0.1, 0.01, 0.001, 5) for name in "ab"]
    weak = Estimate("c", 0.1, 0.2, 0.5, 5)
    assert "significant are a +10.0 ± 1.0, b" in effects_verdict(clear, "Arms")
    assert "the other 1 is not" in effects_verdict([*clear, weak], "Arms")


def test_a_harmful_and_a_helpful_operation_are_found_and_no_other():
    effects = operation_effects(planted({"blur": -0.03, "shift": +0.03}))
    found = {one.name: one.mean > 0 for one in effects if one.excludes_zero}
    assert found["blur"] is False
    assert found["shift"] is True
    by_name = {one.name: one for one in effects}
    assert by_name["blur"].mean + by_name["blur"].half_width < 0
    assert by_name["shift"].mean - by_name["shift"].half_width > 0


@pytest.mark.parametrize("table", [planted({}), planted({"blur": -0.03}, shuffled=True)])
def test_chance_is_not_taken_for_an_effect(table):
    assert not any(one.excludes_zero for one in operation_effects(table))
    assert stability(table).reliability_seeds < 0.8


def test_a_strong_ranking_is_reliable_and_needs_few_seeds():
    found = stability(planted({"blur": -0.03, "shift": +0.03, "zoom": 0.02}))
    assert found.reliability_seeds > 0.9
    assert found.seeds_needed <= 2
    assert found.spearman_labels > 0.8


def test_an_arm_is_among_the_lowest_as_surely_as_it_is_low():
    chances = chance_of_bottom(planted({"blur": -0.05}))
    assert sum(chances.values()) == pytest.approx(9)
    assert min(chances[name] for name in COUPLETS if "blur" in name) > 0.95


def test_intervals_and_tests_are_students_and_holms():
    scores = [
        Score(arm, "x", seed, value)
        for arm, values in {
            "none": (0.50, 0.52, 0.51),
            "a": (0.60, 0.61, 0.63),
            "b": (0.51, 0.52, 0.50),
        }.items()
        for seed, value in enumerate(values)
    ]
    table = tabulate(scores)
    mean = arm_means(table)[1]
    low, high = stats.t.interval(0.95, 2, np.mean([0.6, 0.61, 0.63]), stats.sem([0.6, 0.61, 0.63]))
    assert mean.mean - mean.half_width == pytest.approx(low)
    assert mean.mean + mean.half_width == pytest.approx(high)
    a, b = differences(table, "none")
    raw = stats.ttest_rel((0.60, 0.61, 0.63), (0.50, 0.52, 0.51)).pvalue
    assert a.p_value == pytest.approx(2 * raw)
    assert b.p_value > 0.9


def test_what_is_missing_is_named_and_left_out_of_means():
    table = tabulate([Score("a", "x", 0, 0.5), Score("a", "x", 1, 0.7), Score("b", "x", 1, 0.4)])
    assert table.missing == ["b, x, seed 0"]
    a, b = arm_means(table)
    assert a.mean == pytest.approx(0.6)
    assert (b.mean, b.seeds) == (0.4, 1)
    assert math.isnan(b.half_width)


@pytest.mark.parametrize(("r", "count"), [(0.13, 27), (0.5, 4), (0.0, math.inf), (-0.2, math.inf)])
def test_replicates_for_a_reliable_mean_follow_spearman_and_brown(r, count):
    assert replicates_needed(r) == count
    if r > 0:
        assert spearman_brown(r, count) >= 0.8 > spearman_brown(r, count - 1)
