"""Trainings on a real Slurm: whatever it does to them, the weights are those of an unbroken run."""

from __future__ import annotations

import json
import time

import pytest
from slurm.cluster import wait_until
from slurm.runs import STEPS, differing, preempt, submit, verb, wait_for_step

GRACE_S = 20  # of the partition low

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_two_nodes_with_two_ranks_each_train_to_the_end(cluster, unbroken):
    assert cluster.state(unbroken.job_id)["JobState"] == "COMPLETED", unbroken.log()
    assert unbroken.step() == STEPS
    assert unbroken.events("start")[0]["num_ranks"] == 4
    assert len(list((unbroken.folder / "heartbeats").glob("*/rank-*.json"))) == 4
    status = verb("status", str(unbroken.folder), cluster=cluster)
    assert status.returncode == 0
    assert "finished" in status.stdout
    assert [event["checkpoint"] for event in unbroken.events("finished")] == [f"step-{STEPS:09d}"]


@pytest.mark.parametrize("partition", ["low", "low0"])
def test_a_preempted_run_comes_back_at_its_step_with_equal_bits(
    cluster, shards, unbroken, tmp_path, partition
):
    run = submit(cluster, shards, tmp_path / "a run", f"cluster.partition={partition}")
    wait_for_step(cluster, run, 3)
    high = preempt(cluster)
    cluster.wait_for(high, "COMPLETED", timeout_s=60)
    fields = cluster.wait_for(run.job_id, "COMPLETED", "FAILED", timeout_s=240)
    assert fields["JobState"] == "COMPLETED", run.log()
    assert len([e for e in run.events("training") if e["first_step"] < STEPS]) == 2
    # Slurm 24.11 starts a job that left within its grace once more when it has finished
    assert fields["Restarts"] in ("1", "2")
    (stop,) = run.events("stop")
    # with grace the run asks to come back; without, Slurm has requeued it before it can ask
    assert stop["decision"] == ("requeue" if partition == "low" else "quit")
    assert 3 <= stop["step"] < STEPS
    assert f"resumed at step {stop['step']} of {STEPS}" in run.log()
    assert differing(run.state(), unbroken.state()) == []
    assert [m["loss"] for m in run.metrics()] == [m["loss"] for m in unbroken.metrics()]


def test_a_preempting_job_need_not_wait_for_the_end_of_the_grace(cluster, shards, tmp_path):
    run = submit(cluster, shards, tmp_path / "run", "cluster.partition=low")
    wait_for_step(cluster, run, 2)
    high = preempt(cluster)
    start = time.monotonic()
    cluster.wait_for(high, "COMPLETED", timeout_s=30)
    assert time.monotonic() - start < GRACE_S, run.log()


def test_a_cancelled_run_saves_and_stays_cancelled(cluster, shards, tmp_path):
    run = submit(cluster, shards, tmp_path / "run")
    wait_for_step(cluster, run, 3)
    status = verb("status", "json=true", str(run.folder), cluster=cluster)
    assert json.loads(status.stdout)[0]["state"] == "training"
    cluster.run("scancel", run.job_id)
    fields = cluster.wait_for(run.job_id, "CANCELLED")
    wait_until(lambda: bool(run.events("stop")), "the stop to be noted", 20, run.log)
    (stop,) = run.events("stop")
    assert stop["decision"] == "quit"
    assert (run.folder / "checkpoints" / f"step-{stop['step']:09d}" / "manifest.json").exists()
    assert fields["Restarts"] == "0"
    status = verb("status", str(run.folder), cluster=cluster)
    assert status.returncode == 1  # a person has stopped it, a person may go on with it
    assert f": cancelled, saved at step {stop['step']}\n" in status.stdout
    assert f"the same command continues at step {stop['step']}" in status.stdout
    assert cluster.state(run.job_id)["JobState"] == "CANCELLED"


def test_a_second_submission_for_a_live_run_is_refused(cluster, shards, tmp_path):
    run = submit(cluster, shards, tmp_path / "run", "+cluster.extra.begin=now+1hour")
    again = verb(
        "pretrain",
        "recipe=laptop",
        f"shards=['{shards}']",
        f"run_dir='{run.folder}'",
        "cluster=slurm_cpu_example",
        cluster=cluster,
    )
    assert again.returncode == 2
    assert f"job {run.job_id} (pretrain, " in again.stderr
    assert again.stderr.count("\n") == 1
    status = verb("status", str(run.folder), cluster=cluster)
    assert status.returncode == 0
    assert "waiting: may not start yet" in status.stdout
