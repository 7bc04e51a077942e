"""Slurm's answers, in the forms of several releases, become typed states; the unknown stays so."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.slurm import client as slurm

# scontrol -o show job, shortened; fields and their order as the release prints them
RUNNING_20_11 = (
    "JobId=12 JobName=simclr UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A Priority=429 Nice=0 "
    "Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0 "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:01:10 TimeLimit=00:10:00 TimeMin=N/A "
    "SubmitTime=2021-03-01T10:00:00 EligibleTime=2021-03-01T10:00:00 AccrueTime=Unknown "
    "StartTime=2021-03-01T10:00:01 EndTime=2021-03-01T10:10:01 Deadline=N/A SuspendTime=None "
    "SecsPreSuspend=0 LastSchedEval=2021-03-01T10:00:01 Partition=gpu AllocNode:Sid=login:9 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] BatchHost=n1 NumNodes=2 NumCPUs=8 "
    "Command=/home/ann/a folder/x.sh WorkDir=/home/ann "
    "StdErr=/runs/my run/12_0_log.err StdIn=/dev/null\n"
)
PREEMPTED_22_05 = (
    "JobId=3 JobName=x UserId=root(0) JobState=RUNNING Reason=None Restarts=2 ExitCode=0:0 "
    "PreemptEligibleTime=2026-11-23T21:00:00 PreemptTime=2026-11-23T21:53:11 NodeList=n1\n"
)
ARRAY_23_11 = (
    "JobId=41 ArrayJobId=40 ArrayTaskId=3 ArrayTaskThrottle=2 JobName=pack UserId=ann(1000) "
    "JobState=PENDING Reason=JobArrayTaskLimit Dependency=(null) Requeue=1 Restarts=0 "
    "StartTime=Unknown EndTime=Unknown NodeList= StdErr=/a\n"
)
PENDING_ARRAY_24_05 = (
    "JobId=40 ArrayJobId=40 ArrayTaskId=4-7%2 JobName=pack JobState=PENDING Reason=Resources "
    "Requeue=1 Restarts=0 StartTime=2026-01-01T00:00:00 PreemptTime=None NodeList=(null)\n"
)
NEWER_25_11 = (
    "JobId=9 JobName=JobState=FAILED UserId=ann(1000) JobState=EXPEDITED_SOMETHING Reason=None "
    "Restarts=1 SubmitLine=sbatch --comment JobState=DONE x.sh LicensesAlloc=(null) NodeList=n1\n"
)


def test_a_running_job_of_20_11_is_read_with_spaces_in_its_paths():
    job = slurm.parse_job(RUNNING_20_11)
    assert (job.job_id, job.state, job.nodes) == ("12", "RUNNING", "n[1-2]")
    assert not job.preempted
    assert not job.is_final


def test_a_preemption_time_means_preempted():
    job = slurm.parse_job(PREEMPTED_22_05)
    assert job.preempted
    assert job.restarts == 2


def test_a_member_of_an_array_is_named_by_array_and_index():
    job = slurm.parse_job(ARRAY_23_11)
    assert (job.job_id, job.reason, job.start) == ("40_3", "JobArrayTaskLimit", "")


def test_a_waiting_rest_of_an_array_is_named_by_the_array():
    job = slurm.parse_job(PENDING_ARRAY_24_05)
    assert job.job_id == "40"
    assert not job.preempted


def test_a_state_of_a_newer_release_is_kept_and_is_not_final():
    job = slurm.parse_job(NEWER_25_11)
    assert job.state == "EXPEDITED_SOMETHING"
    assert not job.is_final


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Invalid job id specified", "A=b"])
def test_what_is_no_job_is_refused(text):
    with pytest.raises(slurm.SlurmError, match="not a job"):
        slurm.parse_job(text)


def test_the_queue_is_read_with_reasons_that_hold_the_separator():
    text = (
        "12|RUNNING|2026-11-23T21:00:00|9:01|n[1-2]|None\n"
        "40_3|PENDING|N/A|10:00||(ReqNodeNotAvail, UnavailableNodes:n1|n2)\n"
        "a line of a plugin\n"
    )
    jobs = slurm.parse_queue(text)
    assert set(jobs) == {"12", "40_3"}
    assert jobs["12"].time_left == "9:01"
    assert jobs["40_3"].start == ""
    assert jobs["40_3"].reason.endswith("n1|n2)")


@given(st.text())
def test_any_text_is_a_queue_of_some_length(text):
    assert len(slurm.parse_queue(text)) <= text.count("\n") + len(text)


@given(st.text())
def test_any_text_is_a_job_or_is_refused(text):
    with contextlib.suppress(slurm.SlurmError):
        assert slurm.parse_job(text).job_id


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a command of Slurm on PATH that says what it is told to."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    def make(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


def test_a_forgotten_job_is_absent_from_the_queue(command):
    command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert slurm.queue(["1"]) == {}


def test_other_errors_of_the_queue_are_told(command):
    command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(slurm.SlurmError, match="Unable to contact"):
        slurm.queue(["1"])


def test_nothing_is_asked_about_no_jobs(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert slurm.queue([]) == {}


def test_a_requeue_that_slurm_was_quicker_with_is_no_error(command):
    command("scontrol", "echo 'Job is pending execution for job 3' >&2; exit 1")
    assert slurm.requeue("3") is False


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Access/permission denied for job 3", slurm.DeniedError),
        ("Requested operation is presently disabled for job 3", slurm.RefusedError),
    ],
)
def test_a_refused_requeue_is_an_error_of_its_kind(command, words, kind):
    command("scontrol", f"echo '{words}' >&2; exit 1")
    with pytest.raises(slurm.SlurmError, match=words) as error:
        slurm.requeue("3")
    assert error.type is kind


def test_arguments_are_no_shell(command, tmp_path):
    command("scontrol", f'printf "%s\\n" "$@" > "{tmp_path}/seen"; echo NodeAddr=10.0.0.1')
    slurm.node_address("n1; touch x")
    assert (tmp_path / "seen").read_text().splitlines()[-1] == "n1; touch x"


def test_a_command_without_an_answer_is_given_up(command):
    command("scontrol", "exec sleep 5")
    with pytest.raises(slurm.SlurmError, match="no answer in 0 s"):
        slurm.call(["scontrol"], timeout_s=0.2)


def test_a_missing_command_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(slurm.SlurmError, match="scontrol is not installed"):
        slurm.call(["scontrol"])


def test_a_complaint_is_one_line_without_the_name_of_the_command():
    refused = "sbatch: error: invalid partition\nsbatch: error: Batch job submission failed: no\n"
    assert slurm.one_line(refused) == "invalid partition; Batch job submission failed: no"
    away = "sinfo: error: fetch_config: DNS SRV lookup failed\nsinfo: fatal: Could not establish"
    assert slurm.one_line(away) == "Could not establish"


@pytest.mark.parametrize(
    "state",
    [
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"),
        *("NODE_FAIL", "PREEMPTED", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED", "SPECIAL_EXIT"),
    ],
)
def test_every_final_state_ends_a_job(state):
    assert slurm.JobState("1", state).is_final


@pytest.mark.parametrize("state", ["RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "A_LATER_ONE"])
def test_a_job_that_may_go_on_or_is_unknown_has_not_ended(state):
    assert not slurm.JobState("1", state).is_final


def test_the_users_filters_do_not_change_what_slurm_is_asked(command, monkeypatch):
    for name in ("SQUEUE_STATES", "SINFO_FORMAT", "SACCT_FORMAT", "SCONTROL_ALL"):
        monkeypatch.setenv(name, "PENDING")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    command("scontrol", "env")
    seen = slurm.call(["scontrol"])
    assert "PENDING" not in seen
    assert "SLURM_CONF=/etc/slurm.conf" in seen


def test_bytes_that_are_no_text_spoil_no_answer(command):
    command("scontrol", r"printf 'JobId=7 JobState=RUNNING WorkDir=/caf\351\n'")
    assert slurm.show_job("7").state == "RUNNING"
