"""A few random faults; ``make chaos`` causes thirty."""

from __future__ import annotations

import pytest
from slurm.chaos import FAULTS, chaos

pytestmark = [pytest.mark.slurm, pytest.mark.exhaustive]


def test_weights_after_random_faults_are_those_of_an_undisturbed_run(cluster, shards, tmp_path):
    disturbed = chaos(cluster, shards, tmp_path, 6, 1, list(FAULTS))
    assert len(disturbed.faults) == 6
