"""A few random blows; ``make chaos`` deals thirty."""

from __future__ import annotations

import pytest
from slurm.chaos import chaos

pytestmark = [pytest.mark.slurm, pytest.mark.exhaustive]


def test_weights_after_random_blows_are_those_of_a_run_in_peace(cluster, shards, tmp_path):
    victim = chaos(cluster, shards, tmp_path, blows=6, seed=1)
    assert len(victim.blows) == 6
