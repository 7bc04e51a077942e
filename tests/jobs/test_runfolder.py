"""A run folder keeps the settings it was started with, and lets one attempt at a time publish."""

from __future__ import annotations

import json

import pytest

from jobs.place import Kind, Place
from jobs.requeue import Decision
from jobs.runfolder import (
    Attempt,
    Stopping,
    Submission,
    SupersededError,
    freeze,
    frozen_config,
    read_attempts,
    read_submission,
    write_submission,
)
from simclr.config import OptimConfig, TrainConfig

PLACE = Place(Kind.slurm, "7", restarts=1)


def config(run_dir, **settings) -> TrainConfig:
    return TrainConfig(run_dir=str(run_dir), shards=["a b"], **settings)


def with_a_checkpoint(run_dir):
    (run_dir / "checkpoints" / "step-000000005").mkdir(parents=True)
    return run_dir


def test_frozen_settings_read_back_equal(tmp_path):
    started = config(tmp_path, epochs=3, optim=OptimConfig(learning_rate=0.25))
    freeze(tmp_path, started)
    assert frozen_config(tmp_path) == started


def test_other_settings_are_refused_with_the_list_of_keys(tmp_path):
    freeze(with_a_checkpoint(tmp_path), config(tmp_path, epochs=3))
    with pytest.raises(ValueError, match=r"other settings \(epochs: 3, now 4; seed: 0, now 1\)"):
        freeze(tmp_path, config(tmp_path, epochs=4, seed=1))
    assert frozen_config(tmp_path).epochs == 3


def test_settings_that_leave_the_weights_alone_may_change(tmp_path):
    freeze(with_a_checkpoint(tmp_path), config(tmp_path))
    freeze(tmp_path, config(tmp_path, log_every_steps=99))


def test_settings_may_be_mended_before_the_first_checkpoint(tmp_path):
    freeze(tmp_path, config(tmp_path, epochs=3))
    freeze(tmp_path, config(tmp_path, epochs=4))
    assert frozen_config(tmp_path).epochs == 4


@pytest.mark.parametrize("text", ["- a list\n", "a: [", "nonsense: 1\n"])
def test_settings_that_cannot_be_read_are_refused_with_their_file(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: "):
        frozen_config(tmp_path)


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        frozen_config(tmp_path)


def test_the_provenance_names_code_and_versions_and_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret-value")
    freeze(tmp_path, config(tmp_path))
    text = (tmp_path / "provenance.json").read_text()
    assert "secret-value" not in text
    assert json.loads(text)["versions"]["torch"]


def test_attempts_are_counted_and_described(tmp_path):
    Attempt(tmp_path, PLACE)
    second = Attempt(tmp_path, PLACE)
    second.note("finished", checkpoint="step-000000005")
    events = read_attempts(tmp_path)
    assert [(event["attempt"], event["event"]) for event in events] == [
        (1, "start"),
        (2, "start"),
        (2, "finished"),
    ]
    assert events[0]["job_id"] == "7"


def test_a_line_cut_short_by_a_crash_is_passed_over(tmp_path):
    Attempt(tmp_path, PLACE)
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "ev')
    assert len(read_attempts(tmp_path)) == 1


def test_an_attempt_that_was_overtaken_may_not_publish(tmp_path):
    first = Attempt(tmp_path, PLACE)
    first.write({"step": 1})
    second = Attempt(tmp_path, PLACE)
    with pytest.raises(SupersededError, match=r"attempt 2 on .* this is attempt 1"):
        first.write({"step": 2})
    second.write({"step": 2})


def test_the_end_of_an_attempt_names_the_step_where_it_began(tmp_path):
    attempt = Attempt(tmp_path, PLACE)
    attempt.started(12)
    attempt.note("finished")
    start, finished = read_attempts(tmp_path)
    assert "first_step" not in start
    assert finished["first_step"] == 12


def test_other_ranks_read_the_decision_of_this_start_only(tmp_path):
    earlier = Stopping(tmp_path, Place(Kind.slurm, "7"), Attempt(tmp_path, PLACE), 3, "warning")
    earlier.decided(Decision.requeue)
    other_rank = Stopping(tmp_path, PLACE, None, 5, "warning")
    assert other_rank.decision() is None
    Stopping(tmp_path, PLACE, Attempt(tmp_path, PLACE), 5, "warning").decided(Decision.quit)
    assert other_rank.decision() is Decision.quit


def test_stops_at_the_same_step_are_counted_from_the_latest(tmp_path):
    attempt = Attempt(tmp_path, PLACE)
    for step in (4, 5, 5):
        Stopping(tmp_path, PLACE, attempt, step, "warning").decided(Decision.requeue)
    assert Stopping(tmp_path, PLACE, attempt, 5, "warning").idle_stops() == 3
    assert Stopping(tmp_path, PLACE, attempt, 6, "warning").idle_stops() == 1


def test_a_submission_reads_back_equal(tmp_path):
    assert read_submission(tmp_path, "pretrain") is None
    submission = Submission("12", "pretrain", ["simclr-pretrain", "a b"], 1.5, "log")
    write_submission(tmp_path, submission)
    assert read_submission(tmp_path, "pretrain") == submission
