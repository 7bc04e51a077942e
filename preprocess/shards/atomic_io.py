"""Durable files that are complete or absent, and append-only files that survive a torn line.

All three packages write their results through this module.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# With a leading dot and this suffix, no pattern for finished files matches the name.
TEMPORARY_SUFFIX = ".tmp"
# CIFS, vboxsf and some FUSE file systems cannot flush a folder; the file itself was flushed.
_NO_FSYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def temporary_path(path: Path) -> Path:
    """Return the hidden sibling as which ``path`` is written until it is complete."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}{TEMPORARY_SUFFIX}")


def is_abandoned(path: Path) -> bool:
    """Return whether a temporary path belongs to a process of this machine that has ended."""
    # node names may have dots: those of many clusters are full domain names
    owner = re.search(rf"\.{re.escape(os.uname().nodename)}-(\d+)\.tmp$", path.name)
    if owner is None:
        return False
    try:
        os.kill(int(owner[1]), 0)  # signal 0 checks whether the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it exists and belongs to another user
    return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success fsync it, rename it to ``path`` and fsync the folder.

    On an exception the temporary file is removed and ``path`` stays unchanged.
    """
    temporary = temporary_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file or folder to its final name, durably."""
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flush a file or folder to the storage device.

    Raises:
        OSError: flushing failed; the error names the path.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FSYNC_OF_FOLDERS):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON atomically, keys in the order given."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def append_json_line(path: Path, record: Any) -> None:
    """Append a record as one line of JSON; begin a new line if the last one is incomplete."""
    line = json.dumps(record).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of an append-only file, without incomplete lines; [] if it is missing.

    A line cut by a full disk or a crash is lost; later lines are intact.
    """
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
