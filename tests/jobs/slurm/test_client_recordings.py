"""What Slurm 24.11.5 and 26.05.5 answered on live clusters is read as what happened there.

Each file of ``recorded`` holds the command, its exit code, stdout and stderr.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.slurm import client as slurm
from jobs.slurm.requeue import Decision, requeue_decision

RELEASES = sorted((Path(__file__).parent / "recorded").iterdir())


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def recorded(request):
    """Return a function that gives what a command wrote to stdout, and to stderr."""

    def give(name: str) -> tuple[str, str]:
        text = (request.param / f"{name}.txt").read_text()
        found = re.search(r"--- stdout\n(.*?)--- stderr\n(.*)", text, re.DOTALL)
        return found[1], found[2]

    return give


@pytest.fixture
def answers(recorded, tmp_path, monkeypatch):
    """Put a command on PATH that answers as recorded."""

    def give(command: str, name: str) -> None:
        out, err = recorded(name)
        (tmp_path / "out").write_text(out)
        (tmp_path / "err").write_text(err)
        script = f"cat '{tmp_path}/out'; cat '{tmp_path}/err' >&2; exit {int(bool(err))}"
        (tmp_path / command).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / command).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return give


@pytest.mark.parametrize(
    ("name", "job_id", "state", "reason"),
    [
        ("show-array-member", "5_1", "RUNNING", ""),
        ("show-array-pending", "5_3", "PENDING", "JobArrayTaskLimit"),
        ("show-cancelled", "2", "CANCELLED", "JobHeldAdmin"),
        ("show-held", "2", "PENDING", "JobHeldAdmin"),
        ("show-pending-begin", "2", "PENDING", "BeginTime"),
        ("show-requeueheld", None, "PENDING", "job_requeued_in_held_state"),
        ("show-dep-killed", None, "CANCELLED", "DependencyNeverSatisfied"),
    ],
)
def test_a_job_is_read(recorded, name, job_id, state, reason):
    job = slurm.parse_job(recorded(name)[0])
    assert (job.state, job.reason) == (state, reason)
    assert job_id in (None, job.job_id)
    assert not job.preempted
    assert job.is_final == (state == "CANCELLED")


def test_each_state_of_a_preempted_and_cancelled_job_leads_to_its_decision(recorded):
    decisions = {}
    for line in recorded("show-preempted-and-cancelled")[0].splitlines():
        job = slurm.parse_job(line)
        decision = requeue_decision(job.state, preempted=job.preempted, warned=False)
        decisions[job.state, job.preempted] = decision
    assert decisions.pop(("SIGNALING", True), None) is None  # a moment that one release showed
    assert decisions == {
        ("RUNNING", False): Decision.stay,
        ("RUNNING", True): Decision.requeue,
        ("COMPLETING", False): Decision.quit,
        ("PENDING", False): Decision.quit,
        ("CANCELLED", False): Decision.quit,
    }


def test_the_queue_is_read(recorded):
    array = slurm.parse_queue(recorded("squeue-array")[0])
    assert {name: job.state for name, job in array.items()} == {
        **dict.fromkeys(("5_0", "5_1"), "RUNNING"),
        **dict.fromkeys(("5_2", "5_3"), "PENDING"),
    }
    assert slurm.parse_queue(recorded("squeue-held")[0])["2"].reason == "JobHeldAdmin"


def test_refusals_and_forgotten_jobs_are_told_apart(answers):
    answers("squeue", "squeue-forgotten")
    assert slurm.queue(["999"]) == {}
    answers("sacct", "sacct")
    assert slurm.endings(["1"]) == {}
    answers("scontrol", "requeue-disabled")
    with pytest.raises(slurm.RefusedError, match="presently disabled"):
        slurm.requeue("3")
    answers("scontrol", "requeue-pending")
    assert slurm.requeue("2") is False


def test_nodes_are_read(answers):
    answers("scontrol", "hostnames")
    assert slurm.host_names("127.0.0.[1-3]") == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    answers("scontrol", "node")
    assert slurm.node_address("127.0.0.1") == "127.0.0.1"
