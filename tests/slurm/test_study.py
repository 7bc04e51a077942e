"""A study on a real Slurm: jobs that wait for one another, preempted on the way; a verdict."""

from __future__ import annotations

import pytest
from slurm.runs import SETTINGS, Run, preempt, verb, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_study_ends_with_a_report_although_it_was_preempted(cluster, shards, tmp_path):
    folder = tmp_path / "a study"
    command = (
        *("cluster=slurm_cpu_example", "cluster.cpus_per_task=1", "cluster.time_min=10"),
        *(word for word in SETTINGS if not word.startswith("max_steps")),
        *("study=rate", "arms=[0.0001,0.05]", "seeds=[0]", "max_steps=12"),
        *(f"shards=['{shards}']", "tasks=[bigearthnet19]", f"output='{folder}'"),
    )
    done = verb("study", *command, cluster=cluster)
    assert done.returncode == 0, done.stderr
    jobs = {line.split()[0]: line.split()[2].rstrip(",") for line in done.stdout.splitlines()}
    assert list(jobs) == ["pretrain", "score", "report"]
    both = [
        Run(folder / "runs" / arm / "seed-0", f"{jobs['pretrain']}_{member}")
        for member, arm in enumerate(("0.0001", "0.05"))
    ]
    for run in both:
        wait_for_step(cluster, run, 1)
    preempt(cluster)
    assert jobs["pretrain"] in verb("status", str(both[1].folder), cluster=cluster).stdout
    fields = cluster.wait_for(jobs["report"], "COMPLETED", "FAILED", "CANCELLED", timeout_s=400)
    assert fields["JobState"] == "COMPLETED"
    assert len((folder / "scores.csv").read_text().splitlines()) == 1 + 2
    assert "one seed" in (folder / "report.html").read_text()
    assert any(len(run.events("start")) == 2 for run in both)
    assert all(run.events("finished") for run in both)
    again = verb("study", *command, cluster=cluster)
    assert again.stdout.count("done before") == 2
