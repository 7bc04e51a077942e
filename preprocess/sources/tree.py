"""A folder comes in, all files below it go out; a folder that cannot be listed is an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


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
