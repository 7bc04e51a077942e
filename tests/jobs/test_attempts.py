"""The attempts of a run say where each began, how it ended, and which of them came to nothing."""

from __future__ import annotations

import json
import resource

import pytest

from jobs.run_dir import (
    RunAttempt,
    SupersededError,
    attempt_number,
    idle_attempts,
    read_attempts,
    saved_step,
)
from jobs.slurm.environment import Launcher, RankEnvironment

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
    RunAttempt(tmp_path, RankEnvironment(Launcher.slurm, "7", restarts=2).describe())
    assert attempt_number(read_attempts(tmp_path), PLACE.start) is None


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
