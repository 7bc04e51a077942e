"""Names in products and lists: text comes in, times and exact sets of names go out."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path


def iso_time(stamp: str) -> str:
    """Return ISO 8601 of a time as products are named after it: ``20170613T101031``."""
    # Sentinel-2 names are in UTC
    return datetime.strptime(stamp, "%Y%m%dT%H%M%S").isoformat() + "Z"


def read_names(path: str) -> set[str]:
    """Read a list with one name a line, plain or gzipped; whole names, never parts of them.

    Of a line with commas the first column counts: the multi-modal release adds the radar name.

    Raises:
        ValueError: the file is missing or unreadable.
    """
    try:
        raw = Path(path).read_bytes()
        text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"the list of patches {path} cannot be read ({error})") from error
    return {name for line in text.splitlines() if (name := line.split(",")[0].strip())}


def read_exclusions(paths: Iterable[str]) -> set[str]:
    """Return all names of several lists."""
    return set().union(*map(read_names, paths))


def read_splits(lists: Mapping[str, str]) -> dict[str, str]:
    """Return the split of every listed name; an empty path stands for no list.

    Args:
        lists: path of the list by split.

    Raises:
        ValueError: a list is unreadable, or two lists share a name.
    """
    split_of: dict[str, str] = {}
    # lists of two releases mixed up would put test patches into training without a word
    for split, path in lists.items():
        for name in read_names(path) if path else ():
            if name in split_of:
                raise ValueError(f"{name} is both in the {split_of[name]} and the {split} list")
            split_of[name] = split
    return split_of
