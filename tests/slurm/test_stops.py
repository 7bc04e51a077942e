"""Stops at bad moments: in a start, in a save, twice, while some ranks lag, where Slurm cancels."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from slurm.cluster import Cluster, running_cluster, wait_until
from slurm.runs import SETTINGS, STEPS, Run, assert_finished_like, preempt, submit, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.exhaustive]


@contextmanager
def uneven(run: Run) -> Iterator[None]:
    """Hold up every other rank again and again, for 0.1 to 0.4 s: the others wait in a step."""
    over, draw = threading.Event(), random.Random(0)

    def tell(ranks: list[int], number: int) -> None:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):  # that is what may happen to it
                os.kill(run.pid(rank), number)

    def hold_up() -> None:
        while not over.wait(draw.uniform(0.05, 0.2)):
            tell([1, 3], signal.SIGSTOP)
            over.wait(draw.uniform(0.1, 0.4))
            tell([1, 3], signal.SIGCONT)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def requeue(cluster: Cluster, run: Run) -> None:
    cluster.run("scontrol", "requeue", run.job_id)


def preempt_it(cluster: Cluster, run: Run) -> None:
    preempt(cluster)


def cancel(cluster: Cluster, run: Run) -> None:
    cluster.run("scancel", run.job_id)


def stopped_once_without_loss(run: Run) -> bool:
    losses = [event["lost_steps"] for event in run.events("training")]
    return len(run.events("stop")) == 1 and not any(losses)


@pytest.mark.parametrize(
    ("stop", "partition"), [(preempt_it, "low"), (preempt_it, "low0"), (requeue, "low")]
)
def test_ranks_out_of_step_stop_together_and_come_back(
    cluster, shards, unbroken, tmp_path, stop, partition
):
    run = submit(cluster, shards, tmp_path / "run", f"cluster.partition={partition}")
    wait_for_step(cluster, run, 2)
    with uneven(run):
        wait_for_step(cluster, run, 4)
        stop(cluster, run)
        wait_until(lambda: bool(run.events("stop")), "the stop", 60, run.log)
    assert_finished_like(cluster, run, unbroken, restarts=1)
    assert stopped_once_without_loss(run)


def test_ranks_out_of_step_save_when_they_are_cancelled(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run")
    wait_for_step(cluster, run, 2)
    with uneven(run):
        wait_for_step(cluster, run, 4)
        cancel(cluster, run)
        assert cluster.wait_for(run.job_id, "CANCELLED", "COMPLETED")["Restarts"] == "0"
    again = submit(cluster, shards, run.folder)
    assert_finished_like(cluster, again, unbroken, restarts=0)
    assert stopped_once_without_loss(run)


@pytest.fixture(scope="module")
def plain_cluster(slurm_is_here):
    """Start a cluster that announces preemption by SIGTERM, as many sites do."""
    with running_cluster(user_signal=False) as cluster:
        yield cluster


@pytest.mark.parametrize("signalling", ["cluster", "plain_cluster"])
def test_a_preemption_as_soon_as_there_are_ranks_is_not_lost(
    signalling, shards, unbroken, tmp_path, request
):
    cluster = request.getfixturevalue(signalling)
    run = submit(cluster, shards, tmp_path / "run")
    cluster.wait_for(run.job_id, "RUNNING")
    wait_until(lambda: bool(cluster.ranks(run.job_id)), "a rank", 30, run.log)
    preempt(cluster)  # nobody listens yet, or somebody has just begun to
    assert_finished_like(cluster, run, unbroken, restarts=1)
    assert not any(event["lost_steps"] for event in run.events("training"))


def test_two_preemptions_are_survived_where_slurm_would_only_cancel(
    cluster, shards, unbroken, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run", "cluster.partition=lowcancel")
    wait_for_step(cluster, run, 3)
    preempt(cluster)
    wait_until(lambda: len(run.events("start")) == 2, "the next attempt", 60, run.log)
    preempt(cluster)  # while it imports, or loads, or trains
    assert_finished_like(cluster, run, unbroken, restarts=2)
    assert not any(event["lost_steps"] for event in run.events("training"))


def test_signals_that_follow_in_a_save_change_nothing(cluster, shards, unbroken, tmp_path):
    # a save behind each step: most signals come while there is one
    run = submit(cluster, shards, tmp_path / "run", "checkpoint.every_steps=1")
    wait_for_step(cluster, run, 3)
    pids, draw = [run.pid(rank) for rank in range(4)], random.Random(0)
    while not run.events("stop"):
        with contextlib.suppress(ProcessLookupError):  # it has left
            os.kill(draw.choice(pids), signal.SIGUSR2)
        threading.Event().wait(0.02)
    assert_finished_like(cluster, run, unbroken, restarts=1)
    assert stopped_once_without_loss(run)


def test_a_finished_job_whose_slurmstepd_is_lost_gives_its_nodes_back(
    cluster, shards, repository, tmp_path
):
    one_node = submit(cluster, shards, tmp_path / "run", "cluster.nodes=1")
    folder = tmp_path / "plain"
    options = ("--parsable", "-N1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
    script = str(repository / "jobs" / "sbatch" / "pretrain.sbatch")
    settings = (*SETTINGS, f"shards=['{shards}']", f"run_dir='{folder}'")
    job_id = cluster.run(
        *("sbatch", *options, "--time=10", f"--output={tmp_path}/log", f"--chdir={tmp_path}"),
        *(script, *settings),
    ).strip()
    plain = Run(folder, job_id)
    for run in (one_node, plain):
        wait_for_step(cluster, run, 2)
        cluster.lose_step(run.job_id)
    for run in (one_node, plain):
        fields = cluster.wait_for(run.job_id, "COMPLETED", "FAILED", "CANCELLED", timeout_s=180)
        assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0"), run.log()
        assert run.step() == STEPS
        assert len(run.events("finished")) == 1
    assert not list(tmp_path.rglob("*.done"))
    cluster.wait_for_idle_nodes()
