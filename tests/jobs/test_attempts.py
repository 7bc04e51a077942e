"""The attempts of a run say where each began, how it ended, and which of them came to nothing."""

from __future__ import annotations

import json
import resource

import pytest

from jobs.attempts import (
    RunAttempt,
    Stopping,
    SupersededError,
    idle_attempts,
    number_of,
    read_attempts,
    saved_step,
)
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.preemption import Decision

PLACE = RankEnvironment(Launcher.slurm, "7", restarts=1, num_ranks=2)


def test_attempts_are_counted_and_described(tmp_path):
    RunAttempt(tmp_path, PLACE)
    second = RunAttempt(tmp_path, PLACE)
    second.note("finished", checkpoint="step-000000005")
    events = read_attempts(tmp_path)
    assert [(event["attempt"], event["event"]) for event in events] == [
        (1, "start"),
        (2, "start"),
        (2, "finished"),
    ]
    assert events[0]["job_id"] == "7"


def test_a_line_cut_short_by_a_crash_is_passed_over(tmp_path):
    RunAttempt(tmp_path, PLACE)
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "ev')
    assert len(read_attempts(tmp_path)) == 1


def test_an_attempt_that_was_overtaken_may_not_publish(tmp_path):
    first = RunAttempt(tmp_path, PLACE)
    first.write({"step": 1})
    second = RunAttempt(tmp_path, PLACE)
    with pytest.raises(SupersededError, match=r"attempt 2 on .* this is attempt 1"):
        first.write({"step": 2})
    second.write({"step": 2})


def test_the_end_of_an_attempt_names_the_step_where_it_began(tmp_path):
    attempt = RunAttempt(tmp_path, PLACE)
    attempt.started(12)
    attempt.note("finished")
    start, training, finished = read_attempts(tmp_path)
    assert "first_step" not in start
    assert training["first_step"] == finished["first_step"] == 12
    assert finished["duration_s"] >= 0


def test_other_ranks_read_the_decision_of_this_start_only(tmp_path):
    earlier = Stopping(
        tmp_path,
        RankEnvironment(Launcher.slurm, "7"),
        RunAttempt(tmp_path, PLACE).number,
        3,
        "SIGUSR2",
    )
    earlier.decided(Decision.requeue)
    other_rank = Stopping(tmp_path, PLACE, None, 5, "SIGUSR2")
    assert other_rank.decision() is None
    Stopping(tmp_path, PLACE, RunAttempt(tmp_path, PLACE).number, 5, "SIGUSR2").decided(
        Decision.quit
    )
    assert other_rank.decision() is Decision.quit


def history(*attempts):
    """Return the events of attempts of job 7: (first step or none, further facts)."""
    events = []
    for number, (first, facts) in enumerate(attempts, 1):
        events.append({"attempt": number, "event": "start", "job_id": "7"} | facts)
        if first is not None:
            events.append({"attempt": number, "event": "training", "first_step": first})
    return events


@pytest.mark.parametrize(
    ("attempts", "idle"),
    [
        ([(0, {}), (5, {}), (5, {})], 2),  # the first got to step 5
        ([(5, {}), (None, {}), (5, {})], 3),  # one never came to train
        ([(0, {}), (3, {})], 0),  # the last one got further than it began
        ([(5, {"job_id": "6"}), (5, {})], 1),  # a person submitted it again
        ([(5, {}), (5, {"decision": "hold"}), (5, {})], 1),  # a person released it
    ],
)
def test_attempts_that_got_nothing_saved_are_counted_from_the_latest(attempts, idle):
    assert idle_attempts(history(*attempts), "7", 5) == idle


def test_the_next_attempt_tells_how_many_steps_were_lost(tmp_path):
    RunAttempt(tmp_path, PLACE)
    lines = [json.dumps({"step": step, "num_steps": 9, "time": 0.0}) for step in (6, 7)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    second = RunAttempt(tmp_path, PLACE)
    second.started(5)
    assert read_attempts(tmp_path)[-1]["lost_steps"] == 2


def test_a_rank_that_was_left_behind_has_no_attempt_to_speak_for(tmp_path):
    first = RunAttempt(tmp_path, PLACE)
    assert number_of(read_attempts(tmp_path), PLACE) == first.number
    RunAttempt(tmp_path, RankEnvironment(Launcher.slurm, "7", restarts=2))
    assert number_of(read_attempts(tmp_path), PLACE) is None


def test_a_file_that_cannot_grow_leaves_the_line_in_the_log(tmp_path, caplog):
    attempt = RunAttempt(tmp_path, PLACE)
    size = (tmp_path / "attempts.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        attempt.note("failed", error="its words")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in caplog.text
    assert "its words" in caplog.text


def test_the_newest_checkpoint_says_what_is_saved(tmp_path):
    assert saved_step(tmp_path) == 0
    for step in (20, 30):
        (tmp_path / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
    assert saved_step(tmp_path) == 30
