"""Which checkpoints stay: the newest few; never fewer than two."""

from __future__ import annotations

import shutil
from pathlib import Path

from simclr.checkpoint.manifest import FOLDER_PATTERN


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoint folders, and what killed attempts left."""
    folders = sorted(checkpoints.glob(FOLDER_PATTERN))
    for folder in folders[: -max(keep, 2)]:
        # First out of the readers' sight, then away: a kill in between leaves no half folder.
        doomed = folder.with_name(f".removing-{folder.name}")
        folder.rename(doomed)
        shutil.rmtree(doomed)
    for pattern in (".removing-*", ".saving-*"):  # of killed attempts: no save is under way now
        for left in checkpoints.glob(pattern):
            shutil.rmtree(left)
