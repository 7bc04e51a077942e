"""The doctor on a real Slurm: what its settings mean for a run."""

from __future__ import annotations

import pytest
from slurm.runs import verb

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_cluster_is_described_by_what_matters_to_a_run(cluster, tmp_path):
    done = verb("doctor", str(tmp_path), cluster=cluster)
    assert done.returncode == 0, done.stdout
    assert "partitions:" in done.stdout
    assert "preempted jobs come back" in done.stdout
    assert "KillWait=10 sec" in done.stdout  # the test cluster's, shorter than most
    assert "env --block-signal=USR2,TERM works" in done.stdout


def test_a_cluster_file_from_what_slurm_says_submits(cluster, tmp_path):
    done = verb("doctor", f"--write-cluster={tmp_path}/mine.yaml", cluster=cluster)
    assert done.returncode == 0, done.stderr
    assert f"--config-dir={tmp_path} cluster=mine" in done.stdout
    pack = ("source=simulated", f"source.root={tmp_path}/r", f"output={tmp_path}/s", "--dry-run")
    done = verb("pack", f"--config-dir={tmp_path}", "cluster=mine", *pack, cluster=cluster)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=low" in done.stdout
