"""What sites and machines do beside stopping a job: it neither ends nor is held for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from slurm.cluster import wait_until
from slurm.runs import assert_finished_like, preempt, submit, verb, wait_for_step

from jobs.slurm.environment import port_of

pytestmark = [pytest.mark.slurm, pytest.mark.exhaustive]


def test_preemptions_while_it_starts_never_hold_a_job(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run")
    for restarts in range(4):  # one more than lost ranks may have
        cluster.wait_for(run.job_id, "RUNNING")
        wait_until(
            lambda n=restarts: (
                len(cluster.ranks(run.job_id)) > 0
                and cluster.state(run.job_id)["Restarts"] == str(n)
            ),
            "a rank",
            60,
            run.log,
        )
        cluster.wait_for(preempt(cluster), "COMPLETED", timeout_s=60)
    assert_finished_like(cluster, run, unbroken, restarts=4)


def test_heartbeats_that_cannot_be_written_end_nothing(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run")
    wait_for_step(cluster, run, 2)
    shutil.rmtree(run.folder / "heartbeats")
    (run.folder / "heartbeats").write_text("no folder")
    wait_for_step(cluster, run, 4)
    preempt(cluster)
    wait_until(lambda: bool(run.events("stop")), "the stop", 60, run.log)
    (run.folder / "heartbeats").unlink()
    assert_finished_like(cluster, run, unbroken, restarts=1)
    assert "heartbeats cannot be written, training continues" in run.log()


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Let nobody write into a folder, not even root."""
    done = subprocess.run(["chattr", "+i", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no folder can be made immutable here: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def test_a_preemption_on_a_disk_that_is_read_only_leads_back_to_the_older_checkpoint(
    cluster, shards, unbroken, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run", "checkpoint.every_steps=4")
    wait_for_step(cluster, run, 5)
    with unwritable(run.folder / "checkpoints"):
        preempt(cluster)
        wait_until(lambda: bool(run.events("stop")), "the stop", 60, run.log)
    assert_finished_like(cluster, run, unbroken, restarts=1)
    (stop,) = run.events("stop")
    assert (stop["decision"], stop["step"]) == ("requeue", 4)
    assert "could not be saved" in stop["save_error"]


def test_a_controller_that_is_away_at_the_warning_is_asked_until_it_is_back(
    cluster, shards, unbroken, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run")
    wait_for_step(cluster, run, 3)
    pid = run.pid(0)
    with cluster.without_controller():
        os.kill(pid, signal.SIGUSR2)
        status = verb("status", str(run.folder), cluster=cluster)
        assert status.returncode == 0
        assert "no answer of Slurm, so this is what the folders say" in status.stdout
        time.sleep(70)
    assert_finished_like(cluster, run, unbroken, restarts=1)
    (stop,) = run.events("stop")
    assert (stop["signal"], stop["decision"]) == ("SIGUSR2", "requeue")


def test_a_taken_port_is_named_and_another_one_is_used(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run", "+cluster.extra.begin=now+1hour")
    with socket.socket() as stranger:
        stranger.bind(("", port_of(run.job_id, 0)))
        stranger.listen()
        cluster.run("scontrol", "update", f"JobId={run.job_id}", "StartTime=now")
        assert_finished_like(cluster, run, unbroken, restarts=0)
    assert f"port {port_of(run.job_id, 0)} of " in run.log()


def test_ranks_keep_the_setup_of_the_job_where_the_site_exports_nothing(
    cluster, shards, unbroken, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run", "+cluster.extra.export=NONE")
    assert_finished_like(cluster, run, unbroken, restarts=0)


def test_a_job_that_may_not_be_requeued_stays_away_after_a_lost_node(
    cluster, shards, unbroken, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run", "cluster.requeue=false")
    wait_for_step(cluster, run, 2)
    node = cluster.state(run.job_id)["BatchHost"]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    fields = cluster.wait_for(run.job_id, "NODE_FAIL", "FAILED", "PENDING", timeout_s=60)
    assert fields["JobState"] == "NODE_FAIL"
    assert fields["Restarts"] == "0"
    status = verb("status", str(run.folder), cluster=cluster)
    assert status.returncode == 1
    assert "ended by Slurm" in status.stdout
    cluster.wait_for_idle_nodes()  # its daemon lives and has reported it back
    again = submit(cluster, shards, run.folder)
    assert_finished_like(cluster, again, unbroken, restarts=0)
