"""More ranks than cores: a run of 16 survives a preemption and a lost rank, and ends on 8."""

from __future__ import annotations

import os
import signal

import pytest
from slurm.cluster import wait_until
from slurm.runs import preempt, submit, wait_for_step

# Sixteen imports of torch share the machine's cores: a start takes minutes where they are busy.
START_S = 120
STEPS = 10
SETTINGS = (
    f"max_steps={STEPS}",
    "data.global_batch_size=16",
    "model.encoder=resnet18",
    "model.batchnorm=world",  # else each rank would normalise by its own patches
    "augment.view_size_px=32",
    # Roundings grow with every step: at the recipe's rate a millionth is a hundredth after six.
    "optim.name=sgd",  # Adam's first steps have the sign of a gradient, however small
    "optim.learning_rate=1e-5",
    "precision=float32",
    "checkpoint.every_steps=2",
    "world.timeout_s=300",
)

pytestmark = [pytest.mark.slurm, pytest.mark.exhaustive]


def on(nodes: int, ranks: int) -> tuple[str, ...]:
    """Return the settings of so many nodes with so many ranks each."""
    return (f"cluster.nodes={nodes}", f"cluster.tasks_per_node={ranks}")


def trained(run, attempts: int) -> None:
    """Wait until so many attempts have come to train."""
    wait_until(
        lambda: len(run.events("training")) == attempts, f"attempt {attempts}", START_S, run.log
    )


def test_sixteen_ranks_come_back_and_eight_end_the_run_with_the_same_losses(
    cluster, shards, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run", *SETTINGS, *on(4, 4))
    trained(run, 1)
    wait_for_step(cluster, run, 2)
    preempt(cluster)
    trained(run, 2)
    (preempted,) = run.events("stop")
    wait_for_step(cluster, run, preempted["step"] + 2)
    os.kill(run.pid(11), signal.SIGKILL)
    wait_until(lambda: len(run.events("stop")) == 2, "the lost rank to be named", 120, run.log)
    lost = run.events("stop")[1]
    assert (lost["signal"], lost["decision"]) == ("lost", "requeue")
    assert lost["cause"].startswith("lost rank 11 on 127.0.0.3, ")
    # it waits to start again on 16 ranks; a person has only 8 left
    cluster.wait_for(run.job_id, "PENDING", timeout_s=60)
    cluster.run("scancel", run.job_id)

    last = submit(cluster, shards, run.folder, *SETTINGS, *on(2, 4))
    # beside it, on another node: its patches and views are those of any number of ranks
    alone = submit(cluster, shards, tmp_path / "alone", *SETTINGS, *on(1, 1))
    for each in (last, alone):
        fields = cluster.wait_for(each.job_id, "COMPLETED", "FAILED", timeout_s=START_S)
        assert fields["JobState"] == "COMPLETED", each.log()
    assert [event["num_ranks"] for event in last.events("start")] == [16, 16, 8]
    assert last.step() == STEPS
    # other ranks sum in another order; other samples or views would differ in the first digit
    losses = [metrics["loss"] for metrics in last.metrics()]
    assert losses == pytest.approx([metrics["loss"] for metrics in alone.metrics()], rel=1e-4)
