"""Where a site keeps accounts, they tell what a run that was killed could not write down."""

from __future__ import annotations

import json
import os
import signal

import pytest
from slurm import accounting
from slurm.cluster import running_cluster
from slurm.runs import preempt, submit, verb, wait_for_step

from jobs.slurm.client import parse_endings

pytestmark = [pytest.mark.slurm, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def accounting_cluster(slurm_is_here):
    """Start a cluster with slurmdbd; optional even where Slurm is demanded."""
    if accounting.missing():
        pytest.skip(accounting.missing())
    with running_cluster(accounting=True) as cluster:
        yield cluster


def test_accounts_and_the_run_tell_the_same_of_a_preempted_and_killed_run(
    accounting_cluster, shards, tmp_path
):
    cluster = accounting_cluster
    run = submit(cluster, shards, tmp_path / "run", "checkpoint.every_steps=4")
    wait_for_step(cluster, run, 3)
    preempt(cluster)
    wait_for_step(cluster, run, run.step() + 6)
    for pid in cluster.ranks(run.job_id).values():  # all at once: nobody is left to note it
        os.kill(pid, signal.SIGKILL)
    fields = cluster.wait_for(run.job_id, "FAILED", "COMPLETED", timeout_s=60)
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "1")
    text = cluster.run("sacct", "-n", "-P", "-X", "-D", "-o", "JobID,State,End", "-j", run.job_id)
    endings = parse_endings(text)[run.job_id]
    # it asked to come back within its grace, so that Slurm did not have to
    assert endings == ["REQUEUED", "FAILED"]
    record = json.loads(verb("status", "json=true", str(run.folder), cluster=cluster).stdout)[0]
    first, second = record["attempts"]
    assert first["outcome"] == "stopped"
    assert "saved, requeued" in first["cause"]
    assert (second["outcome"], second["cause"]) == ("lost", "ended by Slurm: FAILED")
