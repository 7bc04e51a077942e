"""Curves tell loss and probe apart, and a collapse is seen where it is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jobs.study.analysis import Estimate, read_curves
from jobs.study.arms import StudyConfig, StudyName, runs_of
from jobs.study.report import collapses, draw_curves, loss_beside_score

CHANCE = math.log(63)
HEALTHY = {"deviation": 0.9, "mean_cosine": 0.1}
FALLEN = {"deviation": 0.01, "mean_cosine": 0.99}


@pytest.fixture
def runs(tmp_path):
    """Leave metrics of two rates and two seeds: the higher rate collapses with one seed."""
    config = StudyConfig(
        study=StudyName.rate, arms=["0.0001", "0.05"], seeds=[0, 1], output=str(tmp_path)
    )
    runs = runs_of(config)
    for one in runs:
        lost = one.arm == "0.05"
        lines = [
            {
                "step": step,
                "num_steps": 8,
                "loss": CHANCE if lost else CHANCE - 0.3 * step,
                "chance_level": CHANCE,
                **(FALLEN if lost and one.seed == 1 and step > 2 else HEALTHY),
                **({"probe/accuracy": 0.5, "knn/accuracy": 0.4} if step % 4 == 0 else {}),
                **({"controls/random_encoder": 0.3} if step % 4 == 0 else {}),
            }
            for step in (2, 4, 6, 8)
        ]
        folder = Path(one.config.run_dir)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs


def test_every_record_is_a_row_with_a_probe_where_there_was_one(runs):
    points = read_curves(runs)
    assert len(points) == 2 * 2 * 4
    assert [one.share for one in points[:4]] == [0.25, 0.5, 0.75, 1.0]
    assert [math.isnan(one.probe) for one in points[:4]] == [True, False, True, False]
    assert {one.metric for one in points if not math.isnan(one.probe)} == {"accuracy"}


def test_a_collapse_is_told_with_its_arm_and_no_other(runs):
    assert collapses(read_curves(runs)) == (
        "Projections collapsed at some step of 0.05 (in 1 of 2 runs)."
    )
    assert collapses(read_curves(runs[::2])) == ""


def test_a_loss_that_is_null_or_a_deviation_that_is_null_is_no_collapse(runs):
    path = Path(runs[0].config.run_dir, "metrics.jsonl")
    record = {"step": 2, "num_steps": 8, "loss": None, "chance_level": CHANCE}
    path.write_text(json.dumps(record | {"deviation": None, "mean_cosine": 0.99}))
    (one,) = read_curves(runs[:1])
    assert math.isnan(one.loss)
    assert not one.collapsed


def test_what_the_loss_would_choose_is_held_against_what_the_score_chooses(runs):
    means = [Estimate("0.0001", 0.6, 0.1, math.nan, 2), Estimate("0.05", 0.7, 0.1, math.nan, 2)]
    said = loss_beside_score(read_curves(runs), means, "f1")
    assert f"The lowest loss, {CHANCE - 2.4:.2f}, is that of 0.0001, whose F1 is 60.0 %" in said
    assert "the highest F1, 70.0 %, is that of 0.05" in said
    assert loss_beside_score(read_curves(runs), means[:1], "f1") == ""
    means[0] = Estimate("0.0001", 0.8, 0.1, math.nan, 2)
    said = loss_beside_score(read_curves(runs), means, "f1")
    assert (
        said == f"0.0001 has both the lowest loss, {CHANCE - 2.4:.2f}, and the highest F1, 80.0 %."
    )


def test_the_curves_are_drawn_with_and_without_a_probe(runs, tmp_path):
    points = read_curves(runs)
    with_probe = draw_curves(tmp_path / "curves.png", points).read_bytes()
    bare = [one for one in points if math.isnan(one.probe)]
    assert len(with_probe) > 20_000
    assert draw_curves(tmp_path / "bare.png", bare).read_bytes() != with_probe


def test_runs_are_probed_on_the_scored_labels_unless_the_user_has_said_how(tmp_path):
    from make_data import packed_arrays

    shards = str(packed_arrays(tmp_path / "shards", 48, size_px=12, native=False))
    rates = StudyConfig(study=StudyName.rate, output="o", shards=[shards], tasks=["labels"])
    rates.data.global_batch_size = 8
    rates.epochs = 100  # of six steps
    run = runs_of(rates)[0].config
    assert (run.monitor.shards, run.monitor.task, run.monitor.every_steps) == (
        *(shards, "labels"),
        60,
    )
    rates.monitor.shards, rates.monitor.task = "mine", "labels"
    assert runs_of(rates)[0].config.monitor == rates.monitor
    rates.monitor.shards = rates.monitor.task = ""
    rates.study = StudyName.augmentation
    assert runs_of(rates)[0].config.monitor.shards == ""
