"""The task of one pretraining rank: settings come in, the last checkpoint's folder goes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

from jobs.cluster import ClusterConfig, check_batch
from jobs.joblog import log_as
from jobs.place import Kind, Place, current_place, launch_of
from jobs.requeue import Decision, Interrupted, interruptible, leave, saving_at_interrupt
from jobs.runfolder import CHECKPOINTS, JOB_FOLDER, Attempt, Stopping, freeze
from jobs.tasks.task import StoppedError, again
from jobs.tracking import Tracking, sinks_of
from preprocess.shards.manifest import read_manifest
from simclr.config import TrainConfig, require
from simclr.preemption import Preempted


@dataclass(frozen=True)
class Pretrain:
    """Pretrain an encoder, or go on with a run."""

    config: TrainConfig
    token: str = field(default_factory=lambda: uuid4().hex)
    tracking: Tracking = Tracking.none

    verb = "pretrain"
    checkpoint = __submitit_checkpoint__ = again

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
        for shards in [] if cluster.after else config.shards:  # a job before this one packs them
            read_manifest(Path(shards))
        check_batch(config.data.global_batch_size, cluster)
        if current_place().is_main and not cluster.dry_run:
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
                self._draw()
        return str(folder) if place.is_main else ""

    def _train(self, place: Place, attempt: Attempt | None) -> Path:
        from simclr.train import train

        tracked = sinks_of(self.tracking, self.run_dir) if place.is_main else []
        sinks = [attempt, *tracked] if attempt else tracked
        return train(self.config, sinks, launch_of(place, self.token), attempt)

    def _draw(self) -> None:
        # Here, since matplotlib is slow to import and a login node only submits.
        from jobs.figures.curves import draw_curves

        draw_curves(self.run_dir)

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
