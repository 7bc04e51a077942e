"""What holds on the machine's own Slurm holds on newer releases."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from slurm.releases import SUITES, inside, missing

# preemption with and without the warning, scancel; arrays; chains
FILES = ("test_pretraining.py", "test_packing.py", "test_chain.py")

pytestmark = [pytest.mark.slurm, pytest.mark.exhaustive]


@pytest.mark.skipif(bool(missing()), reason=missing() or "never")
@pytest.mark.parametrize("release", SUITES)
def test_runs_arrays_and_chains_survive_on_a_newer_release(release, repository):
    version = subprocess.run(
        inside(release, "slurmctld", "-V"), capture_output=True, text=True, check=True
    )
    assert f" {release}." in version.stdout
    files = [str(repository / "tests" / "slurm" / name) for name in FILES]
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "slurm and not exhaustive", *files]
    done = subprocess.run(
        inside(release, *tests),
        cwd=repository,
        env=os.environ | {"REQUIRE_SLURM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
