"""What packing asks of a source, whichever it is: a layout, references in order, patches."""

from __future__ import annotations

import gzip
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar, NoReturn

from preprocess.shards.format import ShardLayout
from preprocess.shards.patch import Dropped, Patch, PatchRef


class Source(ABC):
    """A configured source: frozen, without open files, usable from several processes.

    Attributes:
        simulated: True when the patches were synthesised, never measured.
    """

    __slots__ = ()
    simulated: ClassVar[bool] = False

    @abstractmethod
    def layout(self) -> ShardLayout:
        """Return what every sample will look like.

        Raises:
            ValueError: the settings cannot be met, a band does not exist here for example.
        """

    @abstractmethod
    def discover(self) -> Iterator[PatchRef | Dropped]:
        """Yield all references in the order of their ids, and what is left out by choice.

        Raises:
            ValueError: the root holds nothing of this source; the message says what was sought.
        """

    @abstractmethod
    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one patch, in the layout's groups and bands.

        Raises:
            PatchError: a file of the patch is missing, unreadable or of another shape.
        """


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


def files_below(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below a root, as a path relative to it, with the names of its files.

    Raises:
        OSError: a folder cannot be listed. Python's own walks pass over it, and its patches would
            be missing in silence.
    """

    def stop(error: OSError) -> NoReturn:
        """Raise what ``os.walk`` would swallow."""
        raise error

    for folder, _, names in os.walk(root, onerror=stop):
        yield Path(folder).relative_to(root).as_posix(), names
