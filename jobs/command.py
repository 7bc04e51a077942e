"""The interface of a command: what ``jobs.launch`` runs here, in local processes, or on Slurm.

Every command may be run again after any end, and continues from what is complete. torch is
imported in ``run``, so that submitting stays quick.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from jobs.config import ClusterConfig
from jobs.run_dir import CompletionMarker
from jobs.slurm.environment import RankEnvironment, current_rank, mark_rank_0_done
from jobs.slurm.requeue import requeued_if_stopped

_Config = TypeVar("_Config")


class StoppedError(RuntimeError):
    """The work stopped as it was asked to, and is saved; the same command continues."""


@dataclass(frozen=True)
class Command(ABC):
    """Work with settings that can run anywhere; submitit pickles it and calls it in every process.

    The first paragraph of a subclass' docstring, its examples, the docstrings of its settings and
    ``results`` make the page of ``--help``.

    Attributes:
        config: settings of the work, a ``Config``.
        name: as in ``simclr-NAME``; also of its yaml file in ``jobs/conf`` and of its jobs.
        Config: dataclass of the settings on the command line, beside ``cluster`` and ``debug``.
        groups: groups of configuration files that it takes.
        output_key: the setting that names the folder for results; each run of a sweep (``-m``)
            gets a folder of its own inside it. Empty if there is no such setting.
        uses_gpu: false: on Slurm it takes the resources of ``cluster.cpu``.
        saves_at_stop: ``run`` handles stop signals itself; else they interrupt it anywhere, and
            in a Slurm job lead to a requeue.
        examples: commands that work.
        main_settings: keys that people change; ``--help`` lists them.
        results: where results go.
        memory_fix: what needs less memory.
    """

    config: Any

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    groups: ClassVar[tuple[str, ...]] = ("cluster",)
    output_key: ClassVar[str] = ""
    uses_gpu: ClassVar[bool] = False
    saves_at_stop: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = ()
    main_settings: ClassVar[tuple[str, ...]] = ()
    results: ClassVar[str] = ""
    memory_fix: ClassVar[str] = "use a machine with more memory"

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        """Return the command for checked settings, which hold those of ``Config`` and others."""
        return cls(narrow(settings, cls.Config))

    @property
    @abstractmethod
    def job_dir(self) -> Path:
        """Folder for submission records, logs and completion marks."""

    def validate(self, cluster: ClusterConfig) -> None:  # noqa: B027 - a hook
        """Refuse settings that cannot work, before anything starts; write nothing.

        Raises:
            ValueError: with the key, its value and the fix.
        """

    def preview(self) -> str:
        """Return what ``--dry-run`` prints where no job would be submitted; write nothing."""
        return f"{self.name} would run in this process"

    def prepare(self) -> None:  # noqa: B027 - a hook
        """Write what belongs to the results once all is valid, before it is submitted or run."""

    def split(self, cluster: ClusterConfig) -> tuple[list[Self], ClusterConfig]:
        """Return the tasks of a job array, and what each needs: one process, unless overridden."""
        return [self], replace(cluster, nodes=1, tasks_per_node=1)

    def follow_up(self) -> Command | None:
        """Return what Slurm runs after all tasks of the array, however they ended."""
        return None

    def incomplete(self, env: RankEnvironment) -> str:
        """Return what is still missing after ``run`` in this process returned nothing."""
        return ""

    @abstractmethod
    def run(self, env: RankEnvironment) -> str:
        """Do this process' share of the work; on one process return the text for stdout."""

    def __call__(self) -> str:
        """Run with preemption handled, and mark completion; every process of a job calls it."""
        # the one place where the work of all commands is wrapped
        with nullcontext(current_rank()) if self.saves_at_stop else requeued_if_stopped() as env:
            result = self.run(env)
        if result:
            self.completion.write(result)
        if env.log:  # submitit's: a process that it starts runs one command
            mark_rank_0_done()
        return result

    def checkpoint(self, *_: object) -> Any:
        """Tell submitit to run the same command again; it asks under two names."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint

    @property
    def completion(self) -> CompletionMarker:
        """The mark of success with these settings."""
        return CompletionMarker(self.job_dir, self.name, self.config)


@contextmanager
def side_work(what: str) -> Iterator[None]:
    """Log what goes wrong beside work that is done and recorded: a picture fails no job."""
    try:
        yield
    except Exception as error:
        logging.getLogger("simclr").warning("%s: %s: %s", what, type(error).__name__, error)


def narrow(settings: Any, kind: type[_Config]) -> _Config:
    """Return the settings of a dataclass from an object that has more."""
    return kind(**{entry.name: getattr(settings, entry.name) for entry in fields(cast(Any, kind))})
