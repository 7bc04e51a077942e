"""Files that are either whole or absent: bytes come in, a durable file goes out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Leading dot and this suffix: no pattern that looks for finished files matches such a name.
TEMPORARY_SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """Return the hidden sibling under which ``path`` is written before it is complete."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}{TEMPORARY_SUFFIX}")


def is_abandoned(path: Path) -> bool:
    """Say whether a temporary path belongs to a process of this machine that is gone."""
    owner = re.search(r"\.([^.]+)-(\d+)\.tmp$", path.name)
    if owner is None or owner[1] != os.uname().nodename:
        return False
    try:
        os.kill(int(owner[2]), 0)  # signal 0 asks whether the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it does, and is somebody else's
    return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success fsync it, rename it to ``path`` and fsync the folder.

    On an exception the temporary file is removed and ``path`` stays as it was.
    """
    temporary = temporary_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Make a finished file or folder visible under its name, durably."""
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flush a file or folder to the storage device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON atomically, keys in the order given."""
    write_text(path, json.dumps(data, indent=1) + "\n")
