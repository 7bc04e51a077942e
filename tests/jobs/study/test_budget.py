"""What a study costs is told from its settings, or from what its runs have shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from make_data import packed_arrays

from jobs.commands.study import budget, check_budget, run_study
from jobs.config import ClusterConfig, Executor, StudyConfig, StudyName
from jobs.study.arms import members_of
from simclr.config import DataConfig

TWO = ClusterConfig(executor=Executor.local, tasks_per_node=2)


@pytest.fixture
def study(tmp_path):
    shards = packed_arrays(tmp_path / "shards", 48, size_px=12, native=False)
    return StudyConfig(
        study=StudyName.rate,
        arms=["0.0001", "0.05"],
        seeds=[0, 1],
        tasks=["labels"],
        output=str(tmp_path / "out"),
        shards=[str(shards)],
        epochs=5,
        data=DataConfig(global_batch_size=8),
        expected_rate=10,
    )


def test_hours_are_runs_by_pairs_by_devices_over_the_stated_rate(study):
    found = budget(study, members_of(study), TWO)
    assert (found.runs, found.pairs, found.measured) == (4, 4 * 5 * 48, False)
    assert found.hours == pytest.approx(4 * 5 * 48 / 10 / 3600 * 2)
    assert "4 runs of 960 pairs" in str(found)
    short = replace(study, max_steps=3)
    assert budget(short, members_of(short), TWO).pairs == 4 * 3 * 8


def test_a_rate_that_was_measured_counts_for_more_than_a_stated_one(study):
    members = members_of(study)
    record = Path(members[0].run.run_dir, "metrics.jsonl")
    record.parent.mkdir(parents=True)
    record.write_text("".join(json.dumps({"step": k, "patches_per_s": k}) + "\n" for k in (5, 20)))
    found = budget(study, members, TWO)
    assert (found.rate, found.measured) == (20, True)


def test_what_costs_more_than_allowed_is_asked_for_before_anything_starts(study):
    dear = replace(study, max_hours=0.01)
    with pytest.raises(ValueError, match=r"4 runs.*more than max_hours=0.01.*say max_hours="):
        run_study(dear, ClusterConfig())
    assert not Path(study.output).exists()
    check_budget(study, budget(study, members_of(study), TWO))
