"""Known truths are found, chance is not taken for one, and the table of 2021 yields its figures."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

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
    read_table,
    replicates_needed,
    spearman_brown,
    stability,
    tabulate,
)
from jobs.study.arms import StudyConfig, StudyName, couplet_name, runs_of
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


def scores_of(arms, labels="x"):
    """Return scores by arm and seed; None where there is none."""
    return [
        Score(arm, labels, seed, value)
        for arm, values in arms.items()
        for seed, value in enumerate(values)
        if value is not None
    ]


def test_an_arm_without_all_its_label_sets_is_compared_with_no_other():
    easy = scores_of({"none": (0.90, 0.91, 0.92), "a": (0.90, 0.92, 0.91)}, "easy")
    hard = scores_of({"none": (0.30, 0.31, 0.32), "a": (None, 0.33, None)}, "hard")
    table = tabulate(easy + hard)
    none, a = arm_means(table)
    assert none.mean == pytest.approx(0.61)
    assert (a.mean, a.seeds) == (pytest.approx((0.92 + 0.33) / 2), 1)
    assert [one.seeds for one in differences(table, "none")] == [1]


def test_arms_of_a_single_seed_do_not_change_what_holm_makes_of_the_others():
    values = {"none": (0.50, 0.51, 0.49), "a": (0.60, 0.62, 0.61), "b": (0.51, 0.56, 0.52)}
    whole = {one.name: one for one in differences(tabulate(scores_of(values)), "none")}
    for position in range(3):
        items = list(values.items())
        items.insert(1 + position, ("c", (0.9, None, None)))
        found = {one.name: one for one in differences(tabulate(scores_of(dict(items))), "none")}
        assert math.isnan(found.pop("c").p_value)
        assert found == whole


@pytest.mark.parametrize("gain", [0.0, 1 / 60])
def test_differences_that_all_seeds_share_are_not_significant(gain):
    base = (0.5, 31 / 60, 0.45)
    table = tabulate(scores_of({"none": base, "a": tuple(value + gain for value in base)}))
    (one,) = differences(table, "none")
    assert one.mean == pytest.approx(gain)
    assert one.p_value == 1.0


def test_couplets_without_a_score_are_not_ranked():
    means = [
        Estimate(name, value, math.nan, math.nan, 1)
        for name, value in zip(
            COUPLETS[:8], (0.9, math.nan, 0.1, 0.5, 0.6, 0.2, 0.05, 0.8), strict=True
        )
    ]
    assert lowest_quarter(means) == [COUPLETS[6], COUPLETS[2]]


def test_a_seed_cut_short_does_not_touch_what_complete_seeds_say():
    table = planted({"blur": -0.03, "shift": +0.03})
    cut = replace(table, grid=table.grid.copy())
    cut.grid[2:, :, 4] = np.nan
    complete = replace(table, seeds=table.seeds[:4], grid=table.grid[:, :, :4])
    assert operation_effects(cut) == operation_effects(complete)
    assert stability(cut).pearson_seeds == pytest.approx(stability(complete).pearson_seeds)


def test_two_arms_under_three_seeds_are_not_called_one_seed():
    table = tabulate(scores_of({"as set": (0.5, 0.6, 0.7), "a": (0.6, 0.6, 0.8)}))
    (said,) = ranking_verdict(stability(table), 3)
    assert said.startswith("No ranking is tested: it takes three arms")


def evaluated(run, shards, value, fraction=1.0, fingerprint="f0"):
    """Leave an evaluation of a run on these shards, as simclr-evaluate writes it."""
    row = {"protocol": "linear probe", "encoder": "pretrained", "fraction": fraction}
    report = {
        "task": {"name": "x"},
        "shards": {"folder": shards},
        "results": [{**row, "scores": {"f1": {"value": value}}}],
    }
    path = Path(run.config.run_dir, "evaluation", f"x-{fingerprint}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))
    return path


def rates(tmp_path, **others):
    """Return a study of two rates, and its runs."""
    options = {"arms": ["0.0001", "0.05"], "seeds": [0], "tasks": ["x"], "labelled": "mine"}
    config = StudyConfig(study=StudyName.rate, output=str(tmp_path), **{**options, **others})
    return config, runs_of(config)


def test_only_evaluations_of_the_studys_shards_and_share_are_read(tmp_path):
    config, runs = rates(tmp_path)
    for one in runs:
        older = evaluated(one, "mine", 0.2, fingerprint="f9")  # of shards packed anew since
        os.utime(older, (1, 1))
        evaluated(one, "mine", 0.5, fingerprint="f1")
        evaluated(one, "elsewhere", 0.9, fingerprint="f2")
    assert read_table(config).grid.ravel().tolist() == [0.5, 0.5]
    evaluated(runs[0], "mine", 0.8, fraction=0.1, fingerprint="f3")
    assert read_table(config).grid.ravel().tolist() == [0.5, 0.5]


def test_label_sets_and_seeds_without_any_score_are_named_as_missing(tmp_path):
    config, runs = rates(tmp_path, seeds=[0, 1], tasks=["x", "y"])
    for one in runs[:2]:
        evaluated(one, "mine", 0.5)
    assert read_table(config).missing == ["label set y", "seed 1"]


@pytest.mark.parametrize(("r", "count"), [(0.13, 27), (0.5, 4), (0.0, math.inf), (-0.2, math.inf)])
def test_replicates_for_a_reliable_mean_follow_spearman_and_brown(r, count):
    assert replicates_needed(r) == count
    if r > 0:
        assert spearman_brown(r, count) >= 0.8 > spearman_brown(r, count - 1)
