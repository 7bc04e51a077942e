"""Formula and simulation of interruptions know nothing of each other, and agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
from interruptions import DAY_S, Habits, best_interval_s, mean_of_trials, overhead, trial

BUSY = Habits(interval_s=1200, save_s=30, restart_s=120, kills_a_day=12)


@pytest.mark.parametrize("interval_s", [120, 600, 3600])
@pytest.mark.parametrize("kills", [2, 12, 48])
def test_kills_cost_in_trials_what_the_formula_says(interval_s, kills):
    run = replace(BUSY, interval_s=interval_s, kills_a_day=kills)
    mean, error = mean_of_trials(run, days=2, lives=300)
    assert abs(mean - overhead(run)) < 4 * error
    assert error < 0.05 * overhead(run)  # or the line above would hold of anything


def test_stops_cost_a_save_and_a_restart_each_and_never_more_than_the_formula_says():
    run = replace(BUSY, kills_a_day=0, stops_a_day=24)
    mean, error = mean_of_trials(run, days=2, lives=300)
    assert abs(mean - overhead(run)) < max(4 * error, 0.01 * mean)
    both = replace(BUSY, stops_a_day=24)
    mean, error = mean_of_trials(both, days=2, lives=300)
    assert mean < overhead(both) + 4 * error
    assert mean > 0.9 * overhead(both)


def test_no_interval_loses_less_than_the_best_one():
    best = best_interval_s(BUSY)
    at = {share: overhead(replace(BUSY, interval_s=best * share)) for share in (0.9, 1, 1.1)}
    assert min(at, key=at.__getitem__) == 1
    lost = {
        share: mean_of_trials(replace(BUSY, interval_s=best * share), days=2, lives=300)[0]
        for share in (0.25, 1, 4)
    }
    assert min(lost, key=lost.__getitem__) == 1


def test_for_rare_kills_the_best_interval_is_youngs():
    rare = replace(BUSY, kills_a_day=0.01)
    assert best_interval_s(rare) == pytest.approx((2 * 30 * 100 * DAY_S) ** 0.5, rel=0.01)


def test_an_undisturbed_run_loses_its_saves_alone():
    quiet = replace(BUSY, kills_a_day=0)
    assert overhead(quiet) == pytest.approx(30 / 1200)
    assert trial(quiet, work_s=12_000, seed=0) == pytest.approx(30 / 1200)


def test_a_stop_does_not_move_the_next_checkpoint():
    """Ten intervals are ten saves, with one more for each stop; none is put off by a stop."""
    run = replace(BUSY, kills_a_day=0, stops_a_day=100, restart_s=0)
    saves = trial(run, work_s=12_000, seed=1) * 12_000 / 30
    assert saves == pytest.approx(round(saves))
    assert round(saves) > 10
