"""What a run was started from: code, versions and machine go into a plain record."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("simclr-s2", "torch", "torchvision", "numpy", "h5py", "rasterio", "submitit")


def provenance() -> dict[str, Any]:
    """Return the record; the environment is left out, as it may hold secrets."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "code": code_version(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        },
    }


def code_version(folder: Path) -> dict[str, Any]:
    """Return commit and whether files differ from it; both None outside a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "-uno"))}


def changes(folder: Path) -> str:
    """Return what differs from the commit in the files that git knows; nothing outside git."""
    return _git(folder, "diff", "HEAD", "--binary") or ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # installed from a package: there is no checkout, and that is no fault
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
