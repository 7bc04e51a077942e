"""Chains on a real Slurm: jobs that wait for one another, and a second call that goes on."""

from __future__ import annotations

import pytest
from slurm.runs import SETTINGS, verb

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PLACE = ("cluster=slurm_cpu_example", "cluster.cpus_per_task=1", "cluster.time_min=10")


def stages(tmp_path, steps=3):
    """Return a chain from rasters to an encoder."""
    return (
        *PLACE,
        *("pack", "source=simulated", f"source.root='{tmp_path / 'ras ters'}'"),
        *("source.num_patches=80", "source.bands=[B02,B04]", "cluster.parts=2"),
        f"output='{tmp_path / 'shards'}'",
        *("pretrain", *SETTINGS, f"max_steps={steps}", f"run_dir='{tmp_path / 'a run'}'"),
        *("evaluate", "task=bigearthnet19", "seeds=[0]"),
        *("export", f"output='{tmp_path / 'encoder'}'"),
    )


def jobs_of(text):
    return {line.split()[0]: line.split()[2].rstrip(",") for line in text.splitlines()}


def test_one_command_leads_from_rasters_to_an_encoder_and_does_nothing_twice(cluster, tmp_path):
    done = verb("chain", *stages(tmp_path), cluster=cluster)
    assert done.returncode == 0, done.stderr
    jobs = jobs_of(done.stdout)
    assert list(jobs) == ["pack", "pretrain", "evaluate", "export"]
    # while they wait or when they are done, the same command finds them: no second set
    found = jobs_of(verb("chain", *stages(tmp_path), cluster=cluster).stdout)
    assert all(found[stage] in (job, "before") for stage, job in jobs.items())
    fields = cluster.wait_for(jobs["export"], "COMPLETED", "CANCELLED", "FAILED", timeout_s=240)
    assert fields["JobState"] == "COMPLETED"
    assert (tmp_path / "a run" / "evaluation.json").exists()
    assert (tmp_path / "encoder" / "encoder.safetensors").exists()
    again = verb("chain", *stages(tmp_path), cluster=cluster)
    assert again.stdout.count("done before") == 4


def test_a_stage_that_fails_cancels_those_that_wait_for_it(cluster, shards, tmp_path):
    done = verb(
        "chain",
        *PLACE,
        *("pretrain", *SETTINGS, "data.bands=[B10]", f"shards=['{shards}']"),
        f"run_dir='{tmp_path / 'run'}'",
        *("export", f"output='{tmp_path / 'encoder'}'"),
        cluster=cluster,
    )
    assert done.returncode == 0, done.stderr
    jobs = jobs_of(done.stdout)
    cluster.wait_for(jobs["pretrain"], "FAILED")
    cluster.wait_for(jobs["export"], "CANCELLED")
    assert not (tmp_path / "encoder").exists()
