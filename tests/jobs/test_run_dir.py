"""A run folder keeps its settings and says of each attempt where it began and how it ended.

One attempt at a time may publish.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from jobs.run_dir import (
    RunAttempt,
    Submission,
    SupersededError,
    attempt_number,
    check_run_dir,
    code_version,
    freeze,
    frozen_config,
    idle_attempts,
    is_superseded,
    read_attempts,
    read_submission,
    saved_step,
    write_submission,
)
from jobs.slurm.environment import Launcher, RankEnvironment
from simclr.config import OptimConfig, TrainConfig


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
        check_run_dir(tmp_path, config(tmp_path, epochs=4, seed=1))
    assert frozen_config(tmp_path).epochs == 3


def test_a_folder_of_packed_shards_becomes_no_run(tmp_path):
    (tmp_path / "manifest.json").touch()
    with pytest.raises(ValueError, match=r"holds packed shards; give another run_dir"):
        check_run_dir(tmp_path, config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_settings_that_leave_the_weights_alone_may_change(tmp_path):
    freeze(with_a_checkpoint(tmp_path), config(tmp_path))
    check_run_dir(tmp_path, config(tmp_path, log_every_steps=99))


def test_settings_may_be_mended_before_the_first_checkpoint(tmp_path):
    freeze(tmp_path, config(tmp_path, epochs=3))
    check_run_dir(tmp_path, config(tmp_path, epochs=4))
    freeze(tmp_path, config(tmp_path, epochs=4))
    assert frozen_config(tmp_path).epochs == 4


@pytest.mark.parametrize("text", ["- a list\n", "a: [", "nonsense: 1\n"])
def test_settings_that_cannot_be_read_are_refused_with_their_file(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: "):
        frozen_config(tmp_path)


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        frozen_config(tmp_path)


def test_the_provenance_names_code_and_versions_and_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret-value")
    freeze(tmp_path, config(tmp_path))
    text = (tmp_path / "provenance.json").read_text()
    assert "secret-value" not in text
    assert json.loads(text)["versions"]["torch"]


def test_a_submission_reads_back_equal(tmp_path):
    assert read_submission(tmp_path, "pretrain") is None
    submission = Submission("12", "pretrain", ["simclr-pretrain", "a b"], 1.5, "log")
    write_submission(tmp_path, submission)
    assert read_submission(tmp_path, "pretrain") == submission


def test_code_outside_a_checkout_has_no_commit(tmp_path):
    assert code_version(tmp_path) == {"commit": None, "changed": None}


def test_code_in_a_checkout_has_one():
    version = code_version(Path(__file__).parent)
    assert len(version["commit"]) == 40
    assert isinstance(version["changed"], bool)


PLACE = RankEnvironment(Launcher.slurm, "7", restarts=1, num_ranks=2)


def test_attempts_are_counted_and_described(tmp_path):
    RunAttempt(tmp_path, PLACE.describe())
    second = RunAttempt(tmp_path, PLACE.describe())
    second.record("finished", checkpoint="step-000000005")
    events = read_attempts(tmp_path)
    assert [(event["attempt"], event["event"]) for event in events] == [
        (1, "start"),
        (2, "start"),
        (2, "finished"),
    ]
    assert events[0]["job_id"] == "7"


def test_a_line_cut_short_by_a_full_disk_spoils_no_other(tmp_path):
    attempt = RunAttempt(tmp_path, PLACE.describe())
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "ev')
    assert len(read_attempts(tmp_path)) == 1
    attempt.record("finished")  # somebody has made room
    assert [event["event"] for event in read_attempts(tmp_path)] == ["start", "finished"]


def test_an_attempt_that_was_overtaken_may_not_publish(tmp_path):
    first = RunAttempt(tmp_path, PLACE.describe())
    first.write({"step": 1})
    second = RunAttempt(tmp_path, PLACE.describe())
    with pytest.raises(SupersededError, match=r"attempt 2 on .* this is attempt 1"):
        first.write({"step": 2})
    second.write({"step": 2})


def test_the_end_of_an_attempt_names_the_step_where_it_began(tmp_path):
    attempt = RunAttempt(tmp_path, PLACE.describe())
    attempt.training_begins(12)
    attempt.record("finished")
    start, training, finished = read_attempts(tmp_path)
    assert "first_step" not in start
    assert training["first_step"] == finished["first_step"] == 12
    assert finished["duration_s"] >= 0


LOST = {"signal": "lost", "decision": "requeue"}
FULL = {"signal": "SIGUSR2", "decision": "requeue", "save_error": "No space left"}
PREEMPTED = {"signal": "SIGTERM", "decision": "requeue"}


def history(*attempts):
    """Return the events of attempts of job 7: (first step or none, stop or none, job)."""
    events = []
    for number, (first, stop, *job) in enumerate(attempts, 1):
        start = {"attempt": number, "event": "start", "job_id": job[0] if job else "7"}
        events.append(start)
        if first is not None:
            events.append({"attempt": number, "event": "training", "first_step": first})
        if stop is not None:
            events.append({"attempt": number, "event": "stop"} | stop)
    return events


@pytest.mark.parametrize(
    ("attempts", "idle"),
    [
        ([(0, LOST), (5, LOST), (5, LOST)], 2),  # the first got to step 5
        ([(5, LOST), (None, LOST), (5, FULL)], 3),  # one never came to train
        ([(0, LOST), (3, LOST)], 0),  # the last one got further than it began
        ([(5, LOST, "6"), (5, LOST)], 1),  # a person submitted it again
        ([(5, LOST), (5, LOST | {"decision": "hold"}), (5, LOST)], 1),  # a person released it
        # preempted while it imported, while it trained, and a lost node, which leaves no word
        ([(None, PREEMPTED), (5, PREEMPTED), (None, None), (5, PREEMPTED)], 0),
        ([(5, LOST), (None, PREEMPTED), (None, None), (5, LOST)], 2),
    ],
)
def test_attempts_that_got_nothing_saved_by_their_own_fault_are_counted(attempts, idle):
    assert idle_attempts(history(*attempts), "7", 5) == idle


def test_the_next_attempt_tells_how_many_steps_were_lost(tmp_path):
    RunAttempt(tmp_path, PLACE.describe())
    lines = [json.dumps({"step": step, "num_steps": 9, "time": 0.0}) for step in (6, 7)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    second = RunAttempt(tmp_path, PLACE.describe())
    second.training_begins(5)
    assert read_attempts(tmp_path)[-1]["lost_steps"] == 2


def test_a_rank_that_was_left_behind_has_no_attempt_to_speak_for(tmp_path):
    first = RunAttempt(tmp_path, PLACE.describe())
    assert attempt_number(read_attempts(tmp_path), PLACE.start) == first.number
    assert not is_superseded(read_attempts(tmp_path), PLACE.start)
    second = RankEnvironment(Launcher.slurm, "7", restarts=2)
    # one whose start could not be recorded, on a full disk for example, speaks for itself
    assert not is_superseded(read_attempts(tmp_path), second.start)
    RunAttempt(tmp_path, second.describe())
    assert attempt_number(read_attempts(tmp_path), PLACE.start) is None
    assert is_superseded(read_attempts(tmp_path), PLACE.start)


def test_a_file_that_cannot_grow_leaves_the_line_in_the_log(tmp_path, caplog):
    attempt = RunAttempt(tmp_path, PLACE.describe())
    size = (tmp_path / "attempts.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        attempt.record("failed", error="its words")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in caplog.text
    assert "its words" in caplog.text


def test_the_newest_checkpoint_says_what_is_saved(tmp_path):
    assert saved_step(tmp_path) == 0
    for step in (20, 30):
        (tmp_path / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
    assert saved_step(tmp_path) == 30
