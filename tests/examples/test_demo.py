"""The demonstration script: what it accepts, its exit codes, and the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from make_data import bigearthnet_v1

SCRIPT = REPOSITORY / "examples" / "demo.sh"


def demo(cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as make does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(SCRIPT)],
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_root_of_something_else_is_refused_in_one_line(tmp_path):
    ended = demo(tmp_path, DATA=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"demo: DATA is {tmp_path}, which holds neither")
    assert ended.stderr.count("\n") == 1


def test_a_failing_step_ends_it_with_its_exit_code(tmp_path):
    ended = demo(tmp_path, DATA="", PATCHES="-1")
    assert ended.returncode == 2
    assert "$ simclr-pack source=simulated" in ended.stdout
    assert "source.num_patches is -1" in ended.stderr


@pytest.mark.slow
def test_the_whole_demonstration_runs(tmp_path):
    ended = demo(tmp_path, DATA="", PATCHES="64")
    assert ended.returncode == 0, ended.stderr
    assert "simulated patches: the scores show that it works" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("Pretraining ")
    for name in ("run/evaluation.md", "export/encoder.safetensors", "export/CARD.md"):
        assert (tmp_path / "demo" / "simulated" / name).exists()


@pytest.mark.slow
def test_few_real_patches_in_an_awkward_folder_are_trained_on_and_not_scored(tmp_path):
    root = tmp_path / 'Big "Earth" (a,b) \\'
    bigearthnet_v1(root / "BigEarthNet-v1.0", 13)
    ended = demo(tmp_path, DATA=str(root))
    assert ended.returncode == 0, ended.stderr
    assert "data.global_batch_size=12" in ended.stdout
    assert ended.stdout.endswith("No verdict: too few patches to score an encoder.\n")
    assert (tmp_path / "demo" / "bigearthnet_v1" / "export" / "CARD.md").exists()
