"""Sweeps: members are named by what differs, and what is done is left out."""

from __future__ import annotations

import subprocess
import sys

import pytest
from make_data import packed_arrays

from jobs.arguments import understood
from jobs.sweep import naming


def test_members_are_named_by_their_swept_settings_alone():
    (setting,) = naming(["run_dir='a b'", "seed=0,1", "data.bands=[B02,B04],[B02]", "+x.y=1"])
    assert setting == "hydra.job.config.override_dirname.exclude_keys=[run_dir,x.y]"


def test_options_may_stand_anywhere():
    words = understood(["a=1", "-m", "b=1,2", "--config-dir", "x y", "--dry-run"])
    assert words[:3] == ["-m", "--config-dir", "x y"]
    assert words[3:6] == ["a=1", "b=1,2", "cluster.dry_run=true"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config-dir"], "--config-dir needs a value: --config-dir VALUE"),
        (["--cfg", "jobs"], "--cfg is 'jobs'; choose one of job, hydra, all"),
        (["--loud"], "--loud is no option; there are --help"),
        (["-x=1"], "-x=1 is no option"),
    ],
)
def test_unknown_options_are_told_with_those_there_are(words, told):
    with pytest.raises(ValueError, match=told):
        understood(words)


@pytest.mark.slow
def test_a_sweep_that_is_started_again_does_only_what_is_missing(tmp_path):
    for name in ("one", "two"):
        packed_arrays(tmp_path / name, 4, bands=["B02"])
    command = [sys.executable, "-m", "jobs.verbs.verify", f"shards={tmp_path}/one,{tmp_path}/two"]

    def said(*more: str) -> list[str]:
        done = subprocess.run([*command, "-m", *more], capture_output=True, text=True, check=True)
        return [line.partition(": ")[2] for line in done.stdout.splitlines()]

    assert all(line.endswith("sound") for line in said())
    assert said() == ["done before, with the same settings"] * 2
    assert all(line.endswith("sound") for line in said("quick=true"))  # another task
