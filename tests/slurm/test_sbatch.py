"""The plain sbatch script trains, is preempted and comes back, as submitit's jobs do."""

from __future__ import annotations

import re

import pytest
from slurm.cluster import wait_until
from slurm.runs import SETTINGS, STEPS, Run, preempt, verb, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_the_pretraining_script_comes_back_after_preemption(cluster, shards, repository, tmp_path):
    folder = tmp_path / "run"
    job_id = cluster.run(
        "sbatch",
        "--parsable",
        "--ntasks-per-node=2",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        "--time=10",
        f"--output={tmp_path}/log",
        str(repository / "jobs" / "sbatch" / "pretrain.sbatch"),
        *SETTINGS,
        f"shards=['{shards}']",
        f"run_dir='{folder}'",
    ).strip()
    run = Run(folder, job_id)
    wait_for_step(cluster, run, 2)
    preempt(cluster)
    wait_until(lambda: len(run.events("stop")) == 1, "the stop", 60)
    # it waits to start again, or imports: nobody has to do anything
    status = verb("status", str(folder), cluster=cluster)
    assert (status.returncode, status.stderr) == (0, "")
    assert re.search(r": (waiting: |starting|completing|training)", status.stdout), status.stdout
    fields = cluster.wait_for(job_id, "COMPLETED", "FAILED", timeout_s=240)
    log = (tmp_path / "log").read_text()
    assert fields["JobState"] == "COMPLETED", log
    assert fields["Restarts"] == "1"
    assert run.step() == STEPS
    assert log.count(str(folder / "checkpoints" / f"step-{STEPS:09d}")) == 1  # the main rank's
