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
