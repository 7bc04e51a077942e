"""Copy the code that a job runs; jobs.slurm.submit calls it at each submission.

A job may wait for days and be requeued many times. It imports from its copy, so that editing the
checkout, or switching the branch, changes neither queued nor requeued jobs.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

from jobs.run_dir import changes, code_version
from preprocess.shards.atomic_io import publish, temporary_path, write_json, write_text

PACKAGES = ("jobs", "simclr", "preprocess")
ORIGIN_NAME = "origin.json"
CHANGES_NAME = "changes.diff"
_LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def take_snapshot(folder: Path) -> Path:
    """Copy the packages below a folder and return the copy, ``folder/<digest>``.

    The same code is kept once; each version has its own folder, so that earlier jobs find the
    code they were submitted with. The commit, and what differs from it, are recorded beside it.
    """
    roots = [_package_folder(package) for package in PACKAGES]
    files = {
        str(path.relative_to(root.parent)): path.read_bytes()
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and not _LEFT_OUT & set(path.parts)
    }
    total = hashlib.sha256()
    for name, content in files.items():
        # Lengths keep the end of one file apart from the beginning of the next.
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    target = folder.absolute() / total.hexdigest()[:16]
    if target.exists():
        return target
    partial = temporary_path(target)
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted submission
    for name, content in files.items():
        copy = partial / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    checkout = _package_folder("jobs").parent
    write_json(partial / ORIGIN_NAME, {"folder": str(checkout), **code_version(checkout)})
    write_text(partial / CHANGES_NAME, changes(checkout))
    try:
        publish(partial, target)
    except OSError:
        # Another submission published the same code first; a folder is not replaced.
        shutil.rmtree(partial)
        if not target.exists():
            raise
    return target


def import_lines(code: Path) -> list[str]:
    """Return shell lines that make Python import from a snapshot, and from nowhere else."""
    return [
        # Where it was empty no colon may stay at the end: it would name the current folder.
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        # ``python -m`` looks into the current folder first, which may be the checkout itself.
        "export PYTHONSAFEPATH=1",
    ]


def running_snapshot() -> str:
    """Return the digest of the snapshot that this process imports from, or nothing."""
    root = _package_folder("jobs").parent
    return root.name if (root / ORIGIN_NAME).exists() else ""


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.origin:
        raise RuntimeError(f"the package {package} has no folder to copy")
    return Path(spec.origin).parent
