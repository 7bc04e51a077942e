"""Curves tell loss and probe apart, and a collapse is seen where it is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jobs.config import StudyConfig, StudyName
from jobs.study.analysis import Estimate
from jobs.study.arms import members_of
from jobs.study.figures import draw_learning
from jobs.study.learning import against_scores, collapses, moments_of

CHANCE = math.log(63)
HEALTHY = {"deviation": 0.9, "mean_cosine": 0.1}
FALLEN = {"deviation": 0.01, "mean_cosine": 0.99}


@pytest.fixture
def members(tmp_path):
    """Leave metrics of two rates and two seeds: the higher rate collapses with one seed."""
    config = StudyConfig(
        study=StudyName.rate, arms=["0.0001", "0.05"], seeds=[0, 1], output=str(tmp_path)
    )
    members = members_of(config)
    for one in members:
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
        folder = Path(one.run.run_dir)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return members


def test_every_record_is_a_row_with_a_probe_where_there_was_one(members):
    moments = moments_of(members)
    assert len(moments) == 2 * 2 * 4
    assert [one.share for one in moments[:4]] == [0.25, 0.5, 0.75, 1.0]
    assert [math.isnan(one.probe) for one in moments[:4]] == [True, False, True, False]
    assert {one.headline for one in moments if not math.isnan(one.probe)} == {"accuracy"}


def test_a_collapse_is_told_with_its_arm_and_no_other(members):
    assert collapses(moments_of(members)) == (
        "Projections collapsed at some step of 0.05 (in 1 of 2 runs)."
    )
    assert collapses(moments_of(members[::2])) == ""


def test_a_loss_that_is_null_or_a_deviation_that_is_null_is_no_collapse(members):
    path = Path(members[0].run.run_dir, "metrics.jsonl")
    record = {"step": 2, "num_steps": 8, "loss": None, "chance_level": CHANCE}
    path.write_text(json.dumps(record | {"deviation": None, "mean_cosine": 0.99}))
    (one,) = moments_of(members[:1])
    assert math.isnan(one.loss)
    assert not one.collapsed


def test_what_the_loss_would_choose_is_held_against_what_the_score_chooses(members):
    means = [Estimate("0.0001", 0.6, 0.1, math.nan, 2), Estimate("0.05", 0.7, 0.1, math.nan, 2)]
    said = against_scores(moments_of(members), means, "f1")
    assert f"The lowest loss, {CHANCE - 2.4:.2f}, is that of 0.0001, whose f1 is 0.600" in said
    assert "the highest f1, 0.700, is that of 0.05" in said
    assert against_scores(moments_of(members), means[:1], "f1") == ""


def test_the_curves_are_drawn_with_and_without_a_probe(members, tmp_path):
    moments = moments_of(members)
    with_probe = draw_learning(tmp_path / "curves.png", moments).read_bytes()
    bare = [one for one in moments if math.isnan(one.probe)]
    assert len(with_probe) > 20_000
    assert draw_learning(tmp_path / "bare.png", bare).read_bytes() != with_probe


def test_runs_are_probed_on_the_scored_labels_unless_the_user_has_said_how(tmp_path):
    from make_data import packed_arrays

    shards = str(packed_arrays(tmp_path / "shards", 48, size_px=12, native=False))
    rates = StudyConfig(study=StudyName.rate, output="o", shards=[shards], tasks=["labels"])
    rates.data.global_batch_size = 8
    rates.epochs = 100  # of six steps
    run = members_of(rates)[0].run
    assert (run.monitor.shards, run.monitor.task, run.monitor.every_steps) == (
        *(shards, "labels"),
        60,
    )
    rates.monitor.shards, rates.monitor.task = "mine", "labels"
    assert members_of(rates)[0].run.monitor == rates.monitor
    rates.monitor.shards = rates.monitor.task = ""
    rates.study = StudyName.augmentation
    assert members_of(rates)[0].run.monitor.shards == ""
