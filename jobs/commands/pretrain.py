"""``simclr-pretrain``: shards become an encoder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, Self
from uuid import uuid4

from jobs import cli
from jobs.attempts import RunAttempt, Stopping, saved_step
from jobs.command import Command, StoppedError, narrow
from jobs.config import ClusterConfig, check_batch
from jobs.run_dir import JOB_FOLDER, check_run_dir, freeze
from jobs.slurm.environment import (
    Launcher,
    RankEnvironment,
    current_rank,
    forget_results,
    launch_of,
    log_as,
)
from jobs.slurm.heartbeat import LATE, Pulse, deadline
from jobs.slurm.lost_rank import (
    abandon,
    clear,
    hold_if_futile,
    lost_peer,
    note_failure,
    told_by_a_peer,
    who_is_lost,
)
from jobs.slurm.preemption import (
    Decision,
    Interrupted,
    deafen,
    interruptible,
    leave,
    saving_at_interrupt,
)
from jobs.staging import scratch_folder, staged
from jobs.tracking import Tracking, sinks_of
from preprocess.shards.manifest import read_manifest
from simclr.config import TrainConfig, require
from simclr.preemption import Preempted


@dataclass(kw_only=True, slots=True)
class PretrainConfig(TrainConfig):
    """Settings of ``simclr-pretrain``: those of training, and where its metrics go.

    Attributes:
        tracking: none or tensorboard, beside metrics.jsonl.
    """

    tracking: Tracking = Tracking.none


@dataclass(frozen=True)
class Pretrain(Command):
    """Pretrain an encoder by SimCLR, or continue a run; on Slurm submit it and print the job id.

    Attributes:
        config: settings of the training.
        token: the same on all ranks that were started together.
        tracking: where metrics go beside the run folder.
        stop_budget_s: what saving may take of the time between a stop signal and the end.
    """

    config: TrainConfig
    token: str = field(default_factory=lambda: uuid4().hex)
    tracking: Tracking = Tracking.none
    stop_budget_s: float = 90.0

    name = "pretrain"
    Config = PretrainConfig
    groups = ("recipe", "cluster")
    output_key = "run_dir"
    saves_at_stop = True
    examples = (
        "simclr-pretrain recipe=laptop shards=[shards] run_dir=runs/first",
        "simclr-pretrain recipe=laptop shards=[shards] run_dir=runs/two cluster=laptop",
        "simclr-pretrain recipe=paper shards=[shards] run_dir=runs/paper \\\n"
        "                  cluster=slurm_example",
    )
    main_settings = (
        *("shards", "run_dir", "epochs", "max_steps", "data.global_batch_size", "data.bands"),
        *("data.positives", "model.encoder", "optim.learning_rate", "loss.temperature"),
        *("monitor.shards", "tracking"),
    )
    results = (
        "run_dir holds config.yaml, provenance.json, attempts.jsonl, metrics.jsonl, curves.png, "
        "checkpoints and logs; simclr-status reads them. stdout names the last checkpoint, or the "
        "job id. A recipe sets many of the values above; --cfg job shows the outcome."
    )
    memory_fix = (
        "lower data.global_batch_size or augment.view_size_px, or set precision=bfloat16 and "
        "model.activation_checkpointing=true"
    )

    @classmethod
    def from_settings(cls, settings: PretrainConfig) -> Self:
        """Keep what does not change the training apart from its settings."""
        return cls(narrow(settings, TrainConfig), tracking=settings.tracking)

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.config.run_dir)

    @property
    def job_dir(self) -> Path:
        """Inside the run folder."""
        return self.run_dir / JOB_FOLDER

    def validate(self, cluster: ClusterConfig) -> None:
        """Check shards, batch and run folder."""
        config = self.config
        require(bool(config.run_dir), "run_dir is empty; give a folder for the run: run_dir=RUN")
        require(bool(config.shards), "shards is empty; give packed folders: shards=[SHARDS]")
        for shards in [] if cluster.after else config.shards:  # a job before this one packs them
            read_manifest(Path(shards))
        check_batch(config.data.global_batch_size, cluster)
        if current_rank().is_main:
            check_run_dir(self.run_dir, config)

    def prepare(self) -> None:
        """Freeze the settings in the run folder."""
        freeze(self.run_dir, self.config)

    def split(self, cluster: ClusterConfig) -> tuple[list[Self], ClusterConfig]:
        """One job with all ranks."""
        # a quarter of the warning is left to ask Slurm, and to end
        return [replace(self, stop_budget_s=0.75 * cluster.signal_delay_s)], cluster

    def run(self, env: RankEnvironment) -> str:
        """Train as one rank; return the last checkpoint's folder on the main one."""
        log_as(env, self.run_dir)
        with interruptible() as listen, saving_at_interrupt(env):
            attempt = None
            try:
                listen()
                forget_results(env)
                attempt = self._begin(env) if env.is_main else None
                folder = self._train(env, attempt)
            except BaseException as event:
                deafen()
                self._end(env, attempt, event)
                raise
            if attempt:
                attempt.note("finished", checkpoint=folder.name)
                self._draw()
        return str(folder) if env.is_main else ""

    def _begin(self, env: RankEnvironment) -> RunAttempt:
        clear(self.run_dir, env)
        attempt = RunAttempt(self.run_dir, env)
        hold_if_futile(attempt, env)
        return attempt

    def _train(self, env: RankEnvironment, attempt: RunAttempt | None) -> Path:
        from simclr.train import train

        tracked = sinks_of(self.tracking, self.run_dir) if env.is_main else []
        sinks = [attempt, *tracked] if attempt else tracked
        abandoned = partial(abandon, self.run_dir, env)
        # Half the time that a collective waits, so that the silent rank is named before the others
        # give up; longer than network file systems keep what they have read of a file.
        silence_s = min(120.0, self.config.world.timeout_s / 2)
        in_time = deadline(self.stop_budget_s, partial(abandoned, code=LATE))
        # ahead of the pulse and the ranks' first meeting: nodes copy for minutes, not in step
        with (
            staged(self.config.shards, scratch_folder(), env.local_rank == 0) as copies,
            Pulse(self.run_dir, env, silence_s, abandoned) as pulse,
            in_time if env.launcher is Launcher.slurm else nullcontext(),
        ):
            supervisor = Supervision(pulse, attempt)
            # settings name the shards that were given: a copy is gone when the job has ended
            return train(self.config, sinks, launch_of(env, self.token), supervisor, copies)

    def _draw(self) -> None:
        # Here, since matplotlib is slow to import and a login node only submits.
        from jobs.figures.run_report import draw_curves

        draw_curves(self.run_dir)

    def _end(self, env: RankEnvironment, attempt: RunAttempt | None, event: BaseException) -> None:
        """Leave a job that comes back; else note why the attempt has failed."""
        if lost_peer(event):
            words = f"lost {who_is_lost(self.run_dir, env)} ({event})"
            if told_by_a_peer(self.run_dir, env):
                return  # a rank that failed by itself would fail again
            if env.launcher is Launcher.slurm:
                abandon(self.run_dir, env, words)
            event = RuntimeError(words)
        elif isinstance(event, Preempted | Interrupted):
            self._stop(env, attempt, event)
        note_failure(self.run_dir, env, event)

    def _stop(
        self, env: RankEnvironment, attempt: RunAttempt | None, event: Preempted | Interrupted
    ) -> NoReturn:
        step = event.step if isinstance(event, Preempted) else saved_step(self.run_dir)
        number = attempt.number if attempt else None
        record = Stopping(self.run_dir, env, number, step, event.stop.name)
        if env.launcher is Launcher.slurm:
            leave(env, event.stop, record)
        record.decided(Decision.quit)
        raise StoppedError(f"stopped, saved at step {step}; the same command goes on from there")


@dataclass(frozen=True)
class Supervision:
    """What a launcher hears and answers, on every rank; see ``simclr.preemption.Supervisor``.

    Attributes:
        pulse: of this rank.
        attempt: on the main rank.
    """

    pulse: Pulse
    attempt: RunAttempt | None

    def reached(self, step: int) -> None:
        """Let the pulse tell the step."""
        self.pulse.reached(step)

    def started(self, step: int) -> None:
        """Note where training begins."""
        if self.attempt:
            self.attempt.started(step)

    def may_publish(self) -> None:
        """Look at the fence.

        Raises:
            SupersededError: a later attempt has begun.
        """
        if self.attempt:
            self.attempt.may_publish()


def main() -> None:
    """Console script."""
    cli.main(Pretrain)


if __name__ == "__main__":
    main()
