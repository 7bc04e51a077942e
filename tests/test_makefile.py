"""What the Makefile does to a machine that others use as well."""

import subprocess

from conftest import REPOSITORY


def test_the_lock_of_apt_is_waited_for():
    ended = subprocess.run(
        ["make", "--dry-run", "slurm"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "apt-get -o DPkg::Lock::Timeout=600 install" in ended.stdout
