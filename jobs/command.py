"""What all tasks have in common: the interface that ``dispatch`` relies on, and its usual answers.

Each task can be run again after any end: packing and runs go on from what is whole. torch is
imported where the work begins, so that submitting stays quick.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from jobs.config import ClusterConfig


class StoppedError(RuntimeError):
    """The work was asked to stop and is saved; the same command goes on."""


class Task(Protocol):
    """Work that ``dispatch`` can run anywhere."""

    @property
    def config(self) -> Any:
        """Its settings, a dataclass."""

    @property
    def verb(self) -> str:
        """The verb that it belongs to."""

    @property
    def folder(self) -> Path:
        """Where a job of it keeps its records and logs."""

    def prepare(self, cluster: ClusterConfig) -> None:
        """Refuse what cannot be, before anything is submitted."""

    def members(self, cluster: ClusterConfig) -> tuple[list[Any], ClusterConfig]:
        """Return the jobs that the work falls into, and what each of them needs."""

    def __call__(self) -> str:
        """Do the work in this process; return what stdout shall say, main process only."""


def again(self: Any, *_: object) -> Any:
    """Tell submitit to run the same task again; it asks under two names."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(self)


def alone(task: Any, cluster: ClusterConfig) -> tuple[list[Any], ClusterConfig]:
    """Deal the work of one process out: one job of one task."""
    return [task], replace(cluster, nodes=1, tasks_per_node=1)
