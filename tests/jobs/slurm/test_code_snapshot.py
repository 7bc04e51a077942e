"""A snapshot holds the code as it was, and Python imports from it wherever it is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from jobs.slurm import submit
from jobs.slurm.submit import PACKAGES, import_lines, take_snapshot


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Let the packages be small ones in a folder that a test may edit."""
    root = tmp_path / "check out"
    for name in PACKAGES:
        (root / name / "__pycache__").mkdir(parents=True)
        (root / name / "__init__.py").write_text(f"WORD = '{name} as submitted'\n")
        (root / name / "__pycache__" / "x.pyc").write_bytes(b"")
    monkeypatch.setattr(submit, "_ROOT", root)
    return root


def test_equal_code_is_kept_once_and_other_code_beside_it(checkout, tmp_path):
    first = take_snapshot(tmp_path / "code")
    assert take_snapshot(tmp_path / "code") == first
    (checkout / "jobs" / "__init__.py").write_text("WORD = 'edited'\n")
    second = take_snapshot(tmp_path / "code")
    assert second != first
    assert "as submitted" in (first / "jobs" / "__init__.py").read_text()
    assert "edited" in (second / "jobs" / "__init__.py").read_text()
    assert not list(first.rglob("*.pyc"))
    assert not list((tmp_path / "code").glob(".*"))  # nothing half made is left


def test_commit_and_uncommitted_changes_are_kept(checkout, tmp_path):
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    (checkout / "simclr" / "__init__.py").write_text("WORD = 'not committed'\n")
    code = take_snapshot(tmp_path / "code")
    origin = json.loads((code / "origin.json").read_text())
    assert len(origin["commit"]) == 40
    assert origin["changed"]
    assert "+WORD = 'not committed'" in (code / "changes.diff").read_text()


@pytest.mark.parametrize("inherited", ["", "/somewhere"])
def test_a_job_imports_from_its_snapshot_even_inside_the_checkout(checkout, tmp_path, inherited):
    code = take_snapshot(tmp_path / "co de")
    (checkout / "jobs" / "__init__.py").write_text("WORD = 'edited'\n")
    (checkout / "this.py").write_text("import jobs; print(jobs.WORD)\n")
    shutil.copy(checkout / "this.py", code / "this.py")
    lines = "\n".join([*import_lines(code), f"{sys.executable} -m this"])
    environment = {**os.environ, "PYTHONPATH": inherited}
    done = subprocess.run(
        ["bash", "-c", lines], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "jobs as submitted\n", done.stderr
