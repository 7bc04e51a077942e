"""Which checkpoints stay: the newest few and the best by a probe; others vanish whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from preprocess.shards.atomic import write_json
from simclr.checkpoint.manifest import CHECKPOINTS, FOLDER_PATTERN, SAVING_PREFIX, folder_name

BEST_NAME = "best.json"

_REMOVING_PREFIX = ".removing-"


@dataclass(frozen=True, slots=True)
class Best:
    """The checkpoint that a probe liked most.

    Attributes:
        step: optimizer steps done.
        score: of the probe; larger is better.
        probe: what was measured, ``k-NN macro average precision`` for example.
    """

    step: int
    score: float
    probe: str


def pin(run_dir: Path, step: int, score: float, probe: str) -> None:
    """Keep the checkpoint of a step until a better one is pinned; main rank only.

    The contrastive loss is no reason to pin: it falls while representations get worse.
    """
    write_json(run_dir / CHECKPOINTS / BEST_NAME, asdict(Best(step, score, probe)))


def best(run_dir: Path) -> Best | None:
    """Return what is pinned, if its checkpoint is there; damage to the note unpins it."""
    try:
        text = (run_dir / CHECKPOINTS / BEST_NAME).read_text(encoding="utf-8")
        found = Best(**json.loads(text))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if (run_dir / CHECKPOINTS / folder_name(found.step)).is_dir() else None


def prune(run_dir: Path, keep: int, best_step: int | None = None) -> None:
    """Remove all checkpoints but the newest ``keep``, at least two, and that of ``best_step``."""
    folders = sorted((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN))
    # One alone may turn out damaged, and there would be nothing to go back to.
    for folder in folders[: -max(keep, 2)]:
        if best_step is None or folder.name != folder_name(best_step):
            discard(folder)


def discard(folder: Path) -> None:
    """Take a checkpoint out of the readers' sight, then away: a kill between leaves no half one."""
    doomed = folder.with_name(f"{_REMOVING_PREFIX}{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)  # a namesake that a killed attempt left
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep(run_dir: Path) -> None:
    """Remove what killed attempts left half done; before an attempt picks its checkpoint.

    A former attempt may still live, on a node that the scheduler has lost. Without its folder it
    cannot rename it to a checkpoint; a folder that it makes later is stopped by the fence.
    """
    for prefix in (_REMOVING_PREFIX, SAVING_PREFIX):
        for left in (run_dir / CHECKPOINTS).glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)  # its owner may be removing it as well
