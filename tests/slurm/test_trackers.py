"""A preempted run is one run in every tracker, with every step once."""

from __future__ import annotations

import json

import pytest
from slurm.runs import STEPS, preempt, submit, verb, wait_for_step
from trackers import mlflow_metrics, mlflow_rows, tensorboard_scalars, wandb_history, wandb_records

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_preempted_run_is_one_run_with_every_step_once_in_three_trackers(
    cluster, shards, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = "tracking=[tensorboard,wandb,mlflow]"
    run = submit(cluster, shards, tmp_path / "a run", "cluster.partition=low", trackers)
    wait_for_step(cluster, run, 3)
    cluster.wait_for(preempt(cluster), "COMPLETED", timeout_s=60)
    fields = cluster.wait_for(run.job_id, "COMPLETED", "FAILED", timeout_s=400)
    assert fields["JobState"] == "COMPLETED", run.log()
    attempts = 1 + int(fields["Restarts"])
    assert attempts >= 2
    steps = list(range(1, STEPS + 1))
    losses = [record["loss"] for record in run.metrics()]
    for read in (tensorboard_scalars, wandb_history, mlflow_metrics):
        found = read(run.folder, "loss")
        assert [step for step, _ in found] == steps, f"{read.__name__}\n{run.log()}"
        # float32 in TensorBoard
        assert [value for _, value in found] == pytest.approx(losses, rel=1e-6)
    assert mlflow_rows(run.folder, "SELECT name, status FROM runs") == [("a run", "FINISHED")]
    assert sum(one.WhichOneof("record_type") == "run" for one in wandb_records(run.folder)) == 1
    tags = dict(mlflow_rows(run.folder, "SELECT key, value FROM tags"))
    assert (tags["job_id"], tags["attempts"]) == (run.job_id, str(attempts))
    (record,) = json.loads(verb("status", "--json", str(run.folder), cluster=cluster).stdout)
    assert set(record["trackers"]) == {"tensorboard", "wandb", "mlflow"}
