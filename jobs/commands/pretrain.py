"""``simclr-pretrain``: train an encoder on shards; see jobs.slurm for how jobs stop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self
from uuid import uuid4

from jobs.config import ClusterConfig
from jobs.launch import Command, StoppedError, narrow, side_work
from jobs.run_dir import RunAttempt, check_run_dir, freeze, saved_step
from jobs.slurm import heartbeat
from jobs.slurm.environment import (
    Launcher,
    RankEnvironment,
    configure_logging,
    current_rank,
    remove_stale_results,
    rendezvous_of,
)
from jobs.slurm.requeue import Decision, RunStop, exit_for_requeue
from jobs.staging import scratch_folder, staged
from jobs.tracking.sink import TrackerProcesses, Tracking, check_installed
from preprocess.config import require_all
from preprocess.shards.manifest import read_manifest
from simclr.config import AugmentConfig, TrainConfig, require_even_share
from simclr.monitoring.metrics import Sink
from simclr.preemption import Preempted, StopSignal


@dataclass(kw_only=True, slots=True)
class PretrainConfig(TrainConfig):
    """Settings of ``simclr-pretrain``: those of training, and where its metrics go.

    Attributes:
        tracking: where metrics go beside metrics.jsonl, such as [tensorboard,wandb].
    """

    tracking: list[Tracking] = field(default_factory=list)


@dataclass(frozen=True)
class Pretrain(Command):
    """Pretrain an encoder by SimCLR, or continue a run; on Slurm submit it and print the job id."""

    config: TrainConfig
    # common to all ranks that were started together
    token: str = field(default_factory=lambda: uuid4().hex)
    tracking: list[Tracking] = field(default_factory=list)  # besides the run folder
    stop_budget_s: float = 90.0  # for saving, of the time from a stop signal to the end

    name = "pretrain"
    Config = PretrainConfig
    home = ("run_dir",)
    groups = ("recipe", "cluster")
    output_key = "run_dir"
    saves_at_stop = True
    uses_gpu = True
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
        """Keep ``tracking``, which does not affect training, separate from its settings."""
        return cls(narrow(settings, TrainConfig), tracking=settings.tracking)

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.config.run_dir)

    def validate(self, cluster: ClusterConfig) -> None:
        """Refuse now what a job would otherwise refuse after waiting in the queue."""
        config, weights = self.config, self.config.model.weights
        require_all(
            (bool(config.run_dir), "run_dir is empty; give a folder for the run: run_dir=RUN"),
            (bool(config.shards), "shards is empty; give packed folders: shards=[SHARDS]"),
            (
                not weights or bool(cluster.after) or Path(weights).exists(),
                f"model.weights is {weights}, which does not exist; correct the path",
            ),
        )
        # a previous job may pack them
        for shards in [] if cluster.after else [*config.shards, config.monitor.shards]:
            if shards:
                read_manifest(Path(shards))
        require_even_share(config.data.global_batch_size, cluster.num_ranks)
        if config.augment != AugmentConfig():  # imports torch, which is slow on a login node
            from simclr.augment.parameters import preset_of

            preset_of(config.augment)
        check_installed(self.tracking)
        if current_rank().is_main:
            check_run_dir(self.run_dir, config)

    def prepare(self) -> None:
        """Freeze the settings in the run folder."""
        freeze(self.run_dir, self.config)

    def split(self, cluster: ClusterConfig) -> tuple[list[Self], ClusterConfig]:
        """Return one task with all ranks."""
        # a quarter of the warning time remains for asking Slurm, and for exiting
        return [replace(self, stop_budget_s=0.75 * cluster.signal_delay_s)], cluster

    def run(self, env: RankEnvironment) -> str:
        """Train as one rank; the main rank returns the last checkpoint's folder."""
        configure_logging(env, self.run_dir)
        with (
            StopSignal(ctrl_c=env.launcher is Launcher.here) as signals,
            TrackerProcesses(self.tracking if env.is_main else (), self.run_dir) as trackers,
        ):
            attempt = None
            try:
                signals.listen()
                remove_stale_results(env)
                sinks: list[Sink] = []
                if env.is_main:
                    heartbeat.clear_heartbeats(self.run_dir, env)
                    attempt = RunAttempt(self.run_dir, env.describe())
                    sinks = [attempt, trackers]
                folder = self._train(env, sinks, attempt, signals)
                signals.ignore()
            except BaseException as event:
                signals.ignore()
                self._end(env, attempt, event, signals.stop_behind(event))
                raise
            if attempt:
                attempt.record("finished", checkpoint=folder.name)
                with side_work("the training is done, but its curves are not drawn"):
                    # Here, since matplotlib is slow to import and a login node only submits.
                    from jobs.figures.run_report import draw_curves

                    draw_curves(self.run_dir)
        return str(folder) if env.is_main else ""

    def _train(
        self,
        env: RankEnvironment,
        sinks: Sequence[Sink],
        attempt: RunAttempt | None,
        signals: StopSignal,
    ) -> Path:
        from simclr.train import train

        lost = partial(heartbeat.exit_lost_rank, self.run_dir, env)

        def look_for_lost_rank() -> None:
            """End the process if a rank is lost: after SIGTERM there is no time to wait for it."""
            if silent := heartbeat.find_silent_ranks(self.run_dir, env, or_behind=False):
                lost(f"lost {silent}")

        # Half the timeout of collectives, so that the silent rank is named before the others give
        # up; longer than network file systems cache files.
        silence_s = min(120.0, self.config.world.timeout_s / 2)
        in_time = heartbeat.save_deadline(
            self.stop_budget_s, partial(lost, code=heartbeat.DEADLINE_EXCEEDED), look_for_lost_rank
        )
        # before heartbeats and the rendezvous: nodes copy for minutes, and not equally long
        with (
            staged(self.config.shards, scratch_folder(), env.local_rank == 0) as copies,
            heartbeat.HeartbeatMonitor(self.run_dir, env, attempt, silence_s, lost) as hooks,
            in_time if env.launcher is Launcher.slurm else nullcontext(),
        ):
            # settings name the original shards: copies are gone when the job has ended
            launch = rendezvous_of(env, self.token)
            return train(self.config, sinks, launch, hooks, copies, signals)

    def _end(
        self,
        env: RankEnvironment,
        attempt: RunAttempt | None,
        event: BaseException,
        stop: Preempted | None,
    ) -> None:
        """End a job for its requeue, or raise where it stopped; else record why it failed."""
        if cause := heartbeat.lost_rank_cause(self.run_dir, env, event):
            if heartbeat.peer_reported_failure(self.run_dir, env):
                return  # an error of that rank itself would recur
            if env.launcher is Launcher.slurm:
                heartbeat.exit_lost_rank(self.run_dir, env, cause)
            event = RuntimeError(cause)
        elif stop:
            step = saved_step(self.run_dir) if stop.step is None else stop.step
            number, error = attempt.number if attempt else None, stop.save_error
            ended = RunStop(env, stop.reason, self.run_dir, number, step, save_error=error)
            if env.launcher is Launcher.slurm:
                exit_for_requeue(ended)
            ended.record(Decision.quit)
            said = "stopped before a step was saved; the same command starts again"
            if step:
                said = f"stopped, saved at step {step}; the same command continues from there"
            raise StoppedError(said) from None
        heartbeat.record_failure(self.run_dir, env, event)


def main() -> None:
    """Console script."""
    from jobs import cli  # here, since ranks need neither hydra nor patch sources

    cli.main(Pretrain)


if __name__ == "__main__":
    main()
