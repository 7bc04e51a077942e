"""What has been done with which settings: a task comes in, a mark beside its records goes out.

Sweeps and chains that are started again leave out what carries a mark. Any change of settings is
another task with a mark of its own.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.tasks.task import Task, again
from preprocess.shards.atomic import write_json
from simclr.settings import to_plain

FOLDER_NAME = "done"


@dataclass(frozen=True)
class Marking:
    """A task as ``dispatch`` runs it: the same work, and a mark when it has succeeded."""

    task: Any

    checkpoint = __submitit_checkpoint__ = again

    @property
    def verb(self) -> str:
        """The task's."""
        return str(self.task.verb)

    @property
    def folder(self) -> Path:
        """The task's."""
        return Path(self.task.folder)

    @property
    def folders(self) -> Sequence[Path]:
        """Of the runs that the task makes, where it makes several."""
        return getattr(self.task, "folders", ())

    def __call__(self) -> str:
        """Do the work; of several processes the one that speaks for all leaves the mark."""
        result = str(self.task())
        if result:
            record = {"verb": self.verb, "time": time.time(), "result": result}
            write_json(_mark(self.task), record)
        return result


def is_done(task: Task) -> bool:
    """Say whether the task has succeeded before, with the same settings."""
    return _mark(task).exists()


def _mark(task: Task) -> Path:
    settings = json.dumps(to_plain(task.config), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return task.folder / FOLDER_NAME / f"{task.verb}-{digest}.json"
