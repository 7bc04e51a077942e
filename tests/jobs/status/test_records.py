"""What a run says of itself, with Slurm's word where there is one, in plain words."""

from __future__ import annotations

import json
import os
import shlex
import socket
from pathlib import Path

import pytest

from jobs.run_dir import Submission, freeze, write_submission
from jobs.slurm.client import JobState
from jobs.status.records import RunRecord, SlurmAnswer, find_runs, jobs_of
from jobs.status.records import describe as describe_run
from jobs.status.render import run_lines
from simclr.checkpoint.manifest import CheckpointManifest, describe_files, write_manifest
from simclr.config import TrainConfig

NOW = 1_800_000_000.0


def describe(run: Path, jobs: dict[str, JobState], now: float | None = None) -> RunRecord:
    return describe_run(run, SlurmAnswer(jobs), now)


@pytest.fixture
def run(tmp_path) -> Path:
    """Make a run that was submitted as job 12 and has not started."""
    folder = tmp_path / "runs" / "one"
    freeze(folder, TrainConfig(run_dir=str(folder)))
    write_submission(folder / "slurm", Submission("12", "pretrain", [], NOW - 600, "/log"))
    return folder


def happened(run: Path, event: str, **facts: object) -> None:
    origin = {"job_id": "12", "host": "elsewhere", "pid": 1, "log": "/log"}
    line = {"attempt": 1, "event": event, "time": NOW - 5000, **origin, **facts}
    with (run / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def trained(run: Path, *, silent_s: float = 5.0) -> None:
    """Let a run have done steps 10 and 20 of 100, ten seconds apart."""
    with (run / "metrics.jsonl").open("w") as file:
        for step in (10, 20):
            record = {"step": step, "num_steps": 100, "patches_per_s": 8.0, "time": NOW + step}
            file.write(json.dumps(record) + "\n")
    for rank, age in ((0, 0.0), (1, silent_s)):
        path = run / "heartbeats" / "7-0" / f"rank-{rank:04d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"time": NOW - age, "rank": rank, "step": 20, "node": "n1"}))
    checkpoint = run / "checkpoints" / "step-000000015"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.pt").write_bytes(b"weights")
    files = describe_files(checkpoint)
    write_manifest(checkpoint, CheckpointManifest(15, 100, 2, {}, "", {}, "", files))
    os.utime(checkpoint / "manifest.json", (NOW - 60, NOW - 60))


def test_a_queued_run_says_why_it_waits(run):
    record = describe(run, {"12": JobState("12", "PENDING", "Priority")}, NOW)
    assert record.state == "waiting: other jobs go first"
    assert not record.needs_person
    assert (record.job_id, record.log) == ("12", "/log")


def test_a_reason_that_we_do_not_know_is_shown_as_slurm_writes_it(run):
    record = describe(run, {"12": JobState("12", "PENDING", "(SomethingNew, x)")}, NOW)
    assert record.state == "waiting: SomethingNew"


def test_a_job_that_can_never_start_needs_a_person(run):
    record = describe(run, {"12": JobState("12", "PENDING", "PartitionTimeLimit")}, NOW)
    assert record.needs_person
    assert "scontrol show job 12" in record.action


def test_a_training_run_shows_progress_checkpoint_and_the_slowest_heartbeat(run):
    happened(run, "start")
    happened(run, "training", first_step=0)
    trained(run)
    record = describe(run, {"12": JobState("12", "RUNNING")}, NOW)
    assert (record.state, record.attempt) == ("training", 1)
    assert (record.step, record.num_steps, record.patches_per_s) == (20, 100, 8.0)
    assert record.time_left_s == pytest.approx(80)
    assert (record.checkpoint_step, record.checkpoint_age_s) == (15, 60)
    assert record.heartbeat_age_s == 5


def test_a_silent_run_needs_a_person(run):
    happened(run, "start")
    trained(run, silent_s=2000)
    record = describe(run, {"12": JobState("12", "RUNNING")}, NOW)
    assert record.state == "running, but rank 1 is silent"
    assert record.needs_person
    assert "scancel 12" in record.action


def test_an_unknown_state_is_shown_and_taken_neither_for_running_nor_for_done(run):
    happened(run, "start")
    record = describe(run, {"12": JobState("12", "A_STATE_TO_COME")}, NOW)
    assert record.state == "a_state_to_come"


def test_a_requeued_run_waits_to_start_again(run):
    happened(run, "start")
    happened(run, "stop", step=15, signal="SIGUSR2", decision="requeue")
    record = describe(run, {"12": JobState("12", "PENDING", "BeginTime")}, NOW)
    assert record.state == "waiting: may not start yet; after a requeue for a minute or two"
    assert not record.needs_person


def test_a_run_that_its_job_left_behind_needs_a_person(run):
    happened(run, "start")
    trained(run)
    record = describe(run, {"12": JobState("12", "NODE_FAIL")}, NOW)
    assert record.state == "ended by Slurm: node_fail"
    record = describe(run, {"12": JobState("12", "OUT_OF_MEMORY")}, NOW)
    assert record.state == "ended by Slurm: out_of_memory"
    assert record.action == "the same command continues at step 15"
    assert record.needs_person


def test_the_runs_own_record_decides_when_slurm_has_forgotten_the_job(run):
    happened(run, "start")
    happened(run, "finished", checkpoint="step-000000100")
    record = describe(run, {}, NOW)
    assert record.state == "finished"
    assert not record.needs_person


def test_a_failure_is_told_with_its_words(run):
    happened(run, "start")
    happened(run, "failed", error="ValueError: band B10 not in the shards")
    record = describe(run, {}, NOW)
    assert record.state == "failed: ValueError: band B10 not in the shards"
    assert record.action == "read the log; the same command continues from the start"
    assert record.needs_person


def test_a_cancelled_run_can_be_gone_on_with(run):
    trained(run)
    happened(run, "stop", step=15, signal="SIGTERM", decision="quit")
    record = describe(run, {"12": JobState("12", "CANCELLED")}, NOW)
    assert record.state == "cancelled, saved at step 15"
    assert record.action == "the same command continues at step 15"


def test_a_run_that_was_cancelled_before_it_could_save_is_cancelled(run):
    happened(run, "start")
    assert describe(run, {"12": JobState("12", "CANCELLED")}, NOW).state == "cancelled"


def test_a_held_run_says_why(run):
    happened(run, "stop", step=15, signal="SIGUSR2", decision="hold")
    assert describe(run, {}, NOW).state == "held: three attempts in a row saved nothing"


def test_a_process_of_this_machine_is_looked_for_by_its_id(run):
    happened(run, "start", host=socket.gethostname(), pid=os.getpid(), job_id="")
    assert describe(run, {}, NOW).state.startswith("starting for")
    happened(run, "start", host=socket.gethostname(), pid=2**22 + 1, job_id="")
    record = describe(run, {}, NOW)
    assert record.state == "ended unrecorded: killed, or the machine failed"
    assert record.needs_person


def test_a_process_of_another_machine_is_judged_by_its_heartbeat(run):
    happened(run, "start", job_id="")
    happened(run, "training", job_id="", first_step=0)
    trained(run, silent_s=10)
    assert describe(run, {}, NOW).state == "training"
    assert describe(run, {}, NOW + 2000).needs_person


def test_a_local_attempt_after_a_job_is_not_judged_by_the_job(run):
    happened(run, "start", job_id="", time=NOW, host=socket.gethostname(), pid=os.getpid())
    assert describe(run, {"12": JobState("12", "FAILED")}, NOW).state.startswith("starting for")


def test_an_attempt_that_still_imports_is_starting_whatever_the_one_before_has_reached(run):
    happened(run, "start", attempt=2)
    trained(run)
    state = describe(run, {"12": JobState("12", "RUNNING")}, NOW).state
    assert state.startswith("starting for")


def test_a_job_of_a_plain_sbatch_script_is_asked_for_by_the_id_of_its_attempt(run):
    (run / "slurm" / "submission-pretrain.json").unlink()
    happened(run, "start", job_id="77")
    happened(run, "stop", step=15, signal="SIGUSR2", decision="requeue", job_id="77")
    assert jobs_of(run) == ["77"]
    record = describe(run, {"77": JobState("77", "PENDING", reason="BeginTime")}, NOW)
    assert (record.job_id, record.needs_person) == ("77", False)
    assert record.state.startswith("waiting: may not start yet")


def test_a_finished_run_that_was_evaluated_asks_for_nothing(run):
    happened(run, "finished", checkpoint="step-000000100")
    folder = run.rename(run.with_name("number one"))
    assert shlex.split(describe(folder, {}, NOW).action) == [
        *("simclr-evaluate", f"run={folder}", "...")
    ]
    folder.rename(run)
    (run / "evaluation.json").write_text("{}")
    assert describe(run, {}, NOW).action == ""


def test_a_folder_without_settings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        describe(tmp_path, {})


def test_runs_are_found_with_their_jobs(run):
    assert find_runs(run.parent) == [run]
    of_a_study = run.parent.parent / "study" / "runs" / "arm" / "seed-0"
    freeze(of_a_study, TrainConfig(run_dir=str(of_a_study)))
    assert find_runs(run.parent.parent / "study") == [of_a_study]
    assert jobs_of(run) == ["12"]
    assert describe(run, {}).heartbeat_age_s is None


def test_a_damaged_checkpoint_is_noticed_by_its_size_and_thoroughly_by_its_checksum(run):
    happened(run, "start")
    trained(run)
    state = run / "checkpoints" / "step-000000015" / "state.pt"
    job = SlurmAnswer({"12": JobState("12", "RUNNING")})
    assert describe_run(run, job, NOW, thorough=True).checkpoint_state == "verified"
    state.write_bytes(b"weightz")
    assert describe_run(run, job, NOW).checkpoint_state == "whole"
    assert "checksum" in describe_run(run, job, NOW, thorough=True).checkpoint_state
    state.write_bytes(b"w")
    record = describe_run(run, job, NOW)
    assert record.needs_person
    assert "damaged: state.pt has 1 bytes, not 7" in record.state


def test_work_at_risk_and_the_time_limit_are_told(run):
    happened(run, "start")
    trained(run)
    job = JobState("12", "RUNNING", nodes="n[1-2]", time_left="1-00:00:30")
    record = describe(run, {"12": job}, NOW)
    assert (record.at_risk_steps, record.at_risk_s) == (5, 60)
    assert record.limit_left_s == 86430
    assert record.expected_end == NOW + record.time_left_s
    assert record.heartbeat_of == "rank 1 on n1, step 20"


def test_each_attempt_is_told_with_its_cause_also_one_that_left_no_word(run):
    happened(run, "start", restarts=0)
    happened(run, "stop", step=15, signal="SIGUSR2", decision="requeue")
    happened(run, "start", attempt=2, restarts=1)
    happened(run, "start", attempt=3, restarts=2)
    happened(run, "finished", attempt=3, first_step=15, checkpoint="step-000000100")
    ends = {"12": ["REQUEUED", "NODE_FAIL", "COMPLETED"]}
    record = describe_run(run, SlurmAnswer({}, ends), NOW)
    assert [attempt.outcome for attempt in record.attempts] == ["stopped", "lost", "finished"]
    assert [attempt.last_step for attempt in record.attempts] == [15, 15, 100]
    assert record.attempts[1].cause == "its node failed"
    without = describe_run(run, SlurmAnswer(), NOW)
    assert without.attempts[1].cause == "killed, or its node was lost"


def test_an_attempt_without_a_word_is_lost_once_its_job_has_ended(run):
    happened(run, "start")
    (alive,) = describe(run, {"12": JobState("12", "RUNNING")}, NOW).attempts
    (over,) = describe(run, {"12": JobState("12", "FAILED")}, NOW).attempts
    assert (alive.outcome, over.outcome) == ("running", "lost")
    assert over.cause == "killed, or its node was lost"


def test_what_an_attempt_has_lost_is_told_by_the_next_one(run):
    happened(run, "start")
    happened(run, "stop", step=15, signal="lost", decision="requeue", cause="lost rank 2")
    happened(run, "start", attempt=2)
    happened(run, "training", attempt=2, first_step=15, lost_steps=4)
    first, second = describe(run, {}, NOW).attempts
    assert (first.cause, first.last_step, first.lost_steps) == ("lost rank 2", 15, 4)
    assert (second.outcome, second.first_step, second.lost_steps) == ("running", 15, None)


def test_a_stop_that_is_recorded_after_the_next_start_belongs_to_its_own_attempt(run):
    happened(run, "start")
    happened(run, "start", attempt=2, restarts=1)
    happened(run, "training", attempt=2, restarts=1, first_step=15)
    happened(run, "stop", step=15, signal="SIGUSR2", decision="quit")  # by the first, late
    trained(run)
    record = describe(run, {"12": JobState("12", "RUNNING")}, NOW)
    assert record.state == "training"
    outcomes = [(attempt.number, attempt.outcome) for attempt in record.attempts]
    assert outcomes == [(1, "stopped"), (2, "running")]


def test_a_job_that_starts_again_after_hours_is_not_called_silent(run):
    happened(run, "start")
    happened(run, "stop", step=15, signal="SIGUSR2", decision="requeue")
    trained(run)
    record = describe(run, {"12": JobState("12", "RUNNING")}, NOW + 7200)
    assert (record.state, record.needs_person) == ("stopping, or starting again", False)


def test_a_finished_run_that_was_submitted_again_waits(run):
    happened(run, "start", job_id="11")
    happened(run, "finished", job_id="11", checkpoint="step-000000015")
    state = describe(run, {"12": JobState("12", "PENDING", reason="Priority")}, NOW).state
    assert state.startswith("waiting: other jobs go first")
    assert describe(run, {"12": JobState("12", "COMPLETED")}, NOW).state == "finished"


def test_the_time_left_does_not_count_the_hours_between_two_attempts(run):
    happened(run, "start")
    trained(run)
    happened(run, "stop", step=20, signal="SIGUSR2", decision="requeue")
    happened(run, "start", attempt=2, time=NOW + 7200)
    with (run / "metrics.jsonl").open("a") as file:
        for step in (30, 40):
            record = {"step": step, "num_steps": 100, "time": NOW + 7200 + step}
            file.write(json.dumps(record) + "\n")
    assert describe(run, {}, NOW + 7250).time_left_s == 60


def test_a_process_that_merely_has_the_number_of_a_lost_one_is_not_the_run(run):
    before_boot = {"host": socket.gethostname(), "pid": os.getpid(), "job_id": ""}
    happened(run, "start", time=1e9, **before_boot)
    record = describe(run, {}, NOW)
    assert record.state == "ended unrecorded: killed, or the machine failed"


def test_steps_are_told_in_full(run):
    happened(run, "start")
    line = {"step": 123456, "num_steps": 200000, "time": NOW, "loss": 1.23456, "probe/f1": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    shown = dict(run_lines(describe(run, {}, NOW)))["metrics"]
    assert shown == "loss 1.235, probe/f1 0.5, probed at step 123456"


def test_the_number_of_a_process_on_this_machine_is_no_job_of_slurm(run):
    (run / "slurm" / "submission-pretrain.json").unlink()
    happened(run, "start", launcher="local", job_id="4240")
    assert jobs_of(run) == []
    happened(run, "start", launcher="slurm", job_id="13")
    assert jobs_of(run) == ["13"]
