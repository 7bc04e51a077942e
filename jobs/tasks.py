"""What the verbs do, as objects that travel in a pickle: settings come in, one line of result out.

Each can be run again after any end: packing and runs go on from what is whole. torch is imported
where the work begins, so that submitting stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol
from uuid import uuid4

from jobs.cluster import ClusterConfig, Executor, check_batch
from jobs.joblog import log_as
from jobs.place import Kind, Place, current_place, launch_of
from jobs.requeue import (
    Decision,
    Interrupted,
    interruptible,
    leave,
    requeued_if_stopped,
    saving_at_interrupt,
)
from jobs.runfolder import CHECKPOINTS, JOB_FOLDER, Attempt, Stopping, freeze
from preprocess.config import PackConfig, VerifyConfig
from preprocess.shards.manifest import read_manifest
from simclr.config import EvaluateConfig, ExportConfig, TrainConfig, require
from simclr.preemption import Preempted


class StoppedError(RuntimeError):
    """The work was asked to stop and is saved; the same command goes on."""


class VerifyError(RuntimeError):
    """Packed shards are not what their manifest says."""


class Task(Protocol):
    """Work that ``dispatch`` can run anywhere."""

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


def _again(self: Any, *_: object) -> Any:
    """Tell submitit to run the same task again; it asks under two names."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(self)


def _alone(task: Any, cluster: ClusterConfig) -> tuple[list[Any], ClusterConfig]:
    return [task], replace(cluster, nodes=1, tasks_per_node=1)


@dataclass(frozen=True)
class Pack:
    """Pack a source; which part of it, every process finds from its place."""

    config: PackConfig

    verb = "pack"
    checkpoint = __submitit_checkpoint__ = _again

    @property
    def folder(self) -> Path:
        """Inside the working folder of packing, which readers of shards pass over."""
        return Path(self.config.output, "packing", JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for both folders, and that there is something to read."""
        require(bool(self.config.output), "output is empty; give a folder: output=SHARDS")
        source = self.config.source
        require(
            bool(source.root),
            f"source.root is empty; give the folder of {source.kind}: source.root=DIR",
        )
        require(
            source.kind == "simulated" or Path(source.root).is_dir(),
            f"source.root is {source.root}, which is no folder",
        )

    def members(self, cluster: ClusterConfig) -> tuple[list[Pack], ClusterConfig]:
        """Deal the parts out: to the members of an array on Slurm, else to processes."""
        if cluster.executor is not Executor.slurm:
            return [self], cluster
        return [self] * cluster.parts, replace(cluster, nodes=1, tasks_per_node=1)

    def __call__(self) -> str:
        """Pack this process' part."""
        with requeued_if_stopped() as place:
            from preprocess.pack import pack

            part = place.array_index * place.num_ranks + place.rank
            num_parts = place.array_size * place.num_ranks
            manifest = pack(self.config, part, num_parts, place.is_main)
        if manifest is None:
            return ""  # the part that ends last speaks for all
        kind = "simulated patches" if manifest.simulated else "patches"
        shards = len(manifest.shards)
        return f"{self.config.output}: {manifest.rows} {kind} in {shards} shards, manifest written"


@dataclass(frozen=True)
class Verify:
    """Compare shards with their manifest."""

    config: VerifyConfig

    verb = "verify"
    checkpoint = __submitit_checkpoint__ = _again
    members = _alone

    @property
    def folder(self) -> Path:
        """Beside the records of packing."""
        return Path(self.config.shards, "packing", JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for a packed folder."""
        require(bool(self.config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        read_manifest(Path(self.config.shards))

    def __call__(self) -> str:
        """Verify; raise ``VerifyError`` with all problems if there are any."""
        with requeued_if_stopped() as place:
            from preprocess.verify import verify

            report = verify(self.config, place.is_main)
        if not report.ok:
            raise VerifyError(
                f"{self.config.shards}: {len(report.problems)} problems: "
                + "; ".join(str(problem) for problem in report.problems)
            )
        depth = "structure" if report.quick else "every checksum, statistics and label counts"
        kind = "simulated patches" if report.simulated else "patches"
        return f"{self.config.shards}: {report.rows} {kind}, {report.shards} shards, {depth}: sound"


@dataclass(frozen=True)
class Pretrain:
    """Pretrain an encoder, or go on with a run."""

    config: TrainConfig
    token: str = field(default_factory=lambda: uuid4().hex)

    verb = "pretrain"
    checkpoint = __submitit_checkpoint__ = _again

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.config.run_dir)

    @property
    def folder(self) -> Path:
        """Inside the run folder."""
        return self.run_dir / JOB_FOLDER

    def prepare(self, cluster: ClusterConfig) -> None:
        """Check shards and batch, and freeze the settings in the run folder."""
        config = self.config
        require(bool(config.run_dir), "run_dir is empty; give a folder for the run: run_dir=RUN")
        require(bool(config.shards), "shards is empty; give packed folders: shards=[SHARDS]")
        for shards in config.shards:
            read_manifest(Path(shards))
        check_batch(config.data.global_batch_size, cluster)
        if current_place().is_main:
            freeze(self.run_dir, config)

    def members(self, cluster: ClusterConfig) -> tuple[list[Pretrain], ClusterConfig]:
        """One job with all ranks."""
        return [self], cluster

    def __call__(self) -> str:
        """Train as one rank; return the last checkpoint's folder on the main one."""
        place = current_place()
        log_as(place, self.run_dir)
        with interruptible(), saving_at_interrupt(place):
            attempt = None
            try:
                attempt = Attempt(self.run_dir, place) if place.is_main else None
                folder = self._train(place, attempt)
            except (Preempted, Interrupted) as event:
                self._stop(place, attempt, event)
            except BaseException as error:
                if attempt:
                    attempt.note("failed", error=f"{type(error).__name__}: {error}")
                raise
            if attempt:
                attempt.note("finished", checkpoint=folder.name)
        return str(folder) if place.is_main else ""

    def _train(self, place: Place, attempt: Attempt | None) -> Path:
        from simclr.train import train

        return train(self.config, [attempt] if attempt else [], launch_of(place, self.token))

    def _stop(
        self, place: Place, attempt: Attempt | None, event: Preempted | Interrupted
    ) -> NoReturn:
        step = event.step if isinstance(event, Preempted) else self._saved_step()
        record = Stopping(self.run_dir, place, attempt, step, event.stop.name)
        if place.kind is Kind.slurm:
            leave(place, event.stop, record)
        record.decided(Decision.quit)
        raise StoppedError(f"stopped, saved at step {step}; the same command goes on from there")

    def _saved_step(self) -> int:
        names = sorted(path.name for path in self.run_dir.glob(CHECKPOINTS))
        return int(names[-1].rpartition("-")[2]) if names else 0


@dataclass(frozen=True)
class Evaluate:
    """Score a run's encoder."""

    config: EvaluateConfig

    verb = "evaluate"
    checkpoint = __submitit_checkpoint__ = _again
    members = _alone

    @property
    def folder(self) -> Path:
        """Inside the run folder."""
        return Path(self.config.run, JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for a run, packed shards and a task that they have labels for."""
        config = self.config
        require(bool(config.run), "run is empty; give a run folder: run=RUN")
        require(Path(config.run).is_dir(), f"run is {config.run}, which is no folder")
        require(bool(config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        require(bool(config.task), "task is empty; name a label set: task=eurosat")
        read_manifest(Path(config.shards))

    def __call__(self) -> str:
        """Evaluate; return the table."""
        with requeued_if_stopped() as place:
            from simclr.evaluate.evaluate import evaluate
            from simclr.evaluate.report import report_text

            path = evaluate(self.config, place.is_main)
            table = report_text(path)
        return f"{table.rstrip()}\n\n{path}"


@dataclass(frozen=True)
class Export:
    """Export a run's encoder."""

    config: ExportConfig

    verb = "export"
    checkpoint = __submitit_checkpoint__ = _again
    members = _alone

    @property
    def folder(self) -> Path:
        """Inside the run folder."""
        return Path(self.config.run, JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for both folders."""
        require(bool(self.config.run), "run is empty; give a run folder: run=RUN")
        require(Path(self.config.run).is_dir(), f"run is {self.config.run}, which is no folder")
        require(bool(self.config.output), "output is empty; give a folder: output=DIR")

    def __call__(self) -> str:
        """Export; return the folder."""
        with requeued_if_stopped():
            from simclr.export import export

            return str(export(self.config))
