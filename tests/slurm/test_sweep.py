"""Sweeps on a real Slurm: an array of frozen members that nobody waits for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from slurm.runs import SETTINGS, Run, preempt, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ALONE = ("cluster=slurm_cpu_example", "cluster.cpus_per_task=1", "cluster.time_min=10")
VALUES = ("[B02,B04]", "[B10]")  # the second is in no shard
STEPS = 8


@pytest.fixture
def checkout(repository, tmp_path):
    """Copy the code, as a checkout that a person goes on editing."""
    folder = tmp_path / "check out"
    for package in ("jobs", "simclr", "preprocess"):
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / package, folder / package, ignore=leave_out)
    return folder


def sweep(cluster, checkout, shards, folder, *arguments):
    settings = [word for word in SETTINGS if not word.startswith(("data.bands", "max_steps"))]
    command = ["-m", "jobs.commands.pretrain", *settings, *ALONE, *arguments]
    return subprocess.run(
        [sys.executable, *command, f"shards=['{shards}']", f"run_dir='{folder}'"],
        env={**os.environ, **cluster.environment, "PYTHONPATH": str(checkout)},
        cwd=checkout,  # as a person would: the current folder is the checkout
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def edit(checkout):
    """Break every module that a member runs, and a value that it was composed from."""
    for name in ("jobs/commands/pretrain.py", "simclr/train.py"):
        (checkout / name).write_text("raise SystemExit('edited')\n")
    (checkout / "jobs/conf/recipe/laptop.yaml").write_text(
        "# @package _global_\nepochs: nonsense\n"
    )


def test_members_come_back_with_the_code_and_settings_they_were_submitted_with(
    cluster, shards, checkout, tmp_path
):
    folder = tmp_path / "a sweep"
    command = ("-m", f"data.bands={','.join(VALUES)}", f"max_steps={STEPS}")
    done = sweep(cluster, checkout, shards, folder, *command)
    assert done.returncode == 0, done.stderr
    array = done.stdout.strip()  # the terminal is free again while the members train
    good, bad = (Run(folder / f"data.bands={v}", f"{array}_{k}") for k, v in enumerate(VALUES))
    edit(checkout)

    wait_for_step(cluster, good, 1)
    preempt(cluster)
    fields = cluster.wait_for(good.job_id, "COMPLETED", "FAILED", timeout_s=240)
    assert fields["JobState"] == "COMPLETED", log_of(folder, good)
    assert fields["Restarts"] == "1"
    assert good.step() == STEPS
    (stop,) = good.events("stop")
    assert f"resumed at step {stop['step']} of {STEPS}" in log_of(folder, good)
    assert len({event["code"] for event in good.events("start")} - {""}) == 1
    # what fails is a failure for Slurm too, and its words are in the run
    assert cluster.state(bad.job_id)["JobState"] == "FAILED"
    assert "band B10 not in the shards" in bad.events("failed")[0]["error"]

    status = subprocess.run(
        [
            sys.executable,
            "-m",
            "jobs.commands.status",
            "--json",
            *(str(run.folder) for run in (good, bad)),
        ],
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    states = [record["state"].partition(":")[0] for record in json.loads(status.stdout)]
    assert states == ["finished", "failed"]
    assert status.returncode == 1


def log_of(folder, run):
    """Return the log of a member, which lies in the folder of the sweep."""
    files = sorted((folder / "slurm").glob(f"{run.job_id}_*_log.err"))
    return "\n".join(file.read_text() for file in files)
