"""A rank of a training on two GPUs is killed: its job is requeued within seconds and ends well."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from slurm.cluster import wait_until
from slurm.runs import submit, wait_for_step

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here"),
]


def test_a_killed_rank_is_requeued_in_less_than_20_s(cluster, shards, tmp_path):
    run = submit(
        cluster, shards, tmp_path / "run", "world.device=cuda", "cluster.nodes=1", "max_steps=2000"
    )
    wait_for_step(cluster, run, 20)
    os.kill(run.pid(1), signal.SIGKILL)
    wait_until(lambda: run.events("stop") != [], "the requeue", 20, run.log)
    (stop,) = run.events("stop")
    assert (stop["signal"], stop["decision"]) == ("lost", "requeue")
    assert stop["cause"].startswith("lost rank 1 on ")
    wait_until(lambda: len(run.events("training")) == 2, "the next attempt", 120, run.log)
