"""What a study costs comes from its settings, or from the rates of its runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from make_data import packed_arrays

from jobs.commands.study import check_budget, run_study
from jobs.config import ClusterConfig, Executor
from jobs.study.arms import StudyConfig, StudyName, runs_of
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
    cost = check_budget(study, runs_of(study), TWO)
    assert cost.startswith("4 runs with 960 pairs in total remain: about 0.053 device hours at 10")
    assert "(expected_rate; the first run will measure it)" in cost
    short = replace(study, max_steps=3)
    assert check_budget(short, runs_of(short), TWO).startswith("4 runs with 96 pairs")


def test_a_measured_rate_counts_for_more_than_a_stated_one(study):
    runs = runs_of(study)
    record = Path(runs[0].config.run_dir, "metrics.jsonl")
    record.parent.mkdir(parents=True)
    record.write_text("".join(json.dumps({"step": k, "patches_per_s": k}) + "\n" for k in (5, 20)))
    assert "at 20 pairs/s (measured)" in check_budget(study, runs, TWO)


def test_a_study_that_costs_too_much_is_refused_before_anything_starts(study):
    dear = replace(study, max_hours=0.01)
    with pytest.raises(ValueError, match=r"4 runs.*more than max_hours=0.01.*Raise max_hours to"):
        run_study(dear, ClusterConfig())
    assert not Path(study.output).exists()
