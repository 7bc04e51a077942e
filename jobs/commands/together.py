"""Several small trainings come in; one job makes them side by side on its device, each a process.

A small network leaves most of a GPU idle, and a job of minutes waits longer than it works. Each
training is a process of its own, as if started by hand here: it knows no Slurm, and resumes by
itself. Only the process that started them speaks with Slurm, when all of them have saved.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobs.attempts import idle_attempts, read_attempts, saved_step
from jobs.command import StoppedError, again
from jobs.commands.pretrain import Pretrain
from jobs.config import ClusterConfig
from jobs.run_dir import Marking, is_done
from jobs.slurm.environment import Launcher, current_rank, forget_results, log_as
from jobs.slurm.preemption import (
    RUN_AGAIN,
    Decision,
    Interrupted,
    interruptible,
    leave,
    saving_at_interrupt,
)
from simclr.config import TrainConfig, require
from simclr.config_io import from_plain, to_plain

POLL_S = 0.2
# A stop signal may come before Python listens; blocked, it waits until the training does.
_COMMAND = ("env", "--block-signal=USR2,TERM", sys.executable, "-m", __name__)
# What would make a training believe that it is a rank of this job.
_OF_RANKS = ("SLURM_STEP_ID", "SLURM_PROCID", "SUBMITIT_EXECUTOR", "RANK", "WORLD_SIZE")
_log = logging.getLogger("simclr")


@dataclass(kw_only=True, slots=True)
class TogetherConfig:
    """Trainings of one process each that share a job.

    Attributes:
        runs: settings of each.
    """

    runs: list[TrainConfig] = field(default_factory=list)


@dataclass(frozen=True)
class Together:
    """Make some trainings side by side, or go on with those that are left.

    Attributes:
        config: settings.
        stop_budget_s: what saving may take of the time between a stop signal and the end.
    """

    config: TogetherConfig
    stop_budget_s: float = 90.0

    verb = "pretrain"
    checkpoint = __submitit_checkpoint__ = again

    @property
    def folder(self) -> Path:
        """That of the first training."""
        return self.tasks[0].folder

    @property
    def folders(self) -> list[Path]:
        """Where each training keeps the record of its job."""
        return [task.folder for task in self.tasks]

    @property
    def tasks(self) -> list[Pretrain]:
        """The trainings."""
        return [Pretrain(run) for run in self.config.runs]

    def prepare(self, cluster: ClusterConfig) -> None:
        """Check each training."""
        require(
            cluster.num_ranks == 1,
            f"runs_per_job is {len(self.config.runs)} but a job has {cluster.num_ranks} ranks; "
            "runs that share a device have one rank each: cluster.nodes=1 cluster.tasks_per_node=1",
        )
        for task in self.tasks:
            task.prepare(cluster)

    def members(self, cluster: ClusterConfig) -> tuple[list[Together], ClusterConfig]:
        """One job of one task."""
        # as for a training alone, a quarter of the warning is left to ask Slurm, and to end
        return [Together(self.config, 0.75 * cluster.signal_delay_s)], cluster

    def __call__(self) -> str:
        """Train all; return the run folders."""
        env = current_rank()
        log_as(env)
        left = [task for task in self.tasks if not is_done(task)]
        with interruptible() as listen, saving_at_interrupt(env):
            forget_results(env)
            try:
                listen()
                codes = self._run(left)
            except Interrupted as event:
                if env.launcher is Launcher.slurm:
                    leave(env, event.stop, Stopped(left))
                raise StoppedError("stopped, saved; the same command goes on from there") from None
        failed = [_why(task, code) for task, code in zip(left, codes, strict=True) if code]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(left)} failed: {'; '.join(failed)}")
        return "\n".join(task.config.run_dir for task in self.tasks)

    def _run(self, left: Sequence[Pretrain]) -> list[int]:
        with _started(left) as processes:
            try:
                return _wait(processes)
            except Interrupted:
                _stop(processes, self.stop_budget_s)
                raise


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop of all trainings of a job; see ``jobs.slurm.preemption.StopRecord``.

    Attributes:
        tasks: those that were not done.
    """

    tasks: Sequence[Pretrain]

    @property
    def step(self) -> int:
        """Steps that all of them have saved together."""
        return sum(saved_step(task.run_dir) for task in self.tasks)

    def idle_attempts(self) -> int:
        """Count the latest attempts in a row that saved nothing in any training."""
        # trainings that know of no job note an empty one
        return min(
            (
                idle_attempts(read_attempts(task.run_dir), "", saved_step(task.run_dir))
                for task in self.tasks
            ),
            default=0,
        )

    def decided(self, decision: Decision, reason: str = "") -> None:
        """Say it in the log; each training has noted its own stop."""
        _log.info("%s: %s", decision.value, reason or f"{self.step} steps are saved")

    def decision(self) -> Decision | None:
        """Nobody else waits for it."""
        return None


@contextmanager
def _started(tasks: Sequence[Pretrain]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a process for each training; none of them outlives the block."""
    environment = {name: text for name, text in os.environ.items() if name not in _OF_RANKS}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for task in tasks:
            # no pipe: a process that a signal ends before it has read would break it
            with tempfile.TemporaryFile("w+") as file:
                json.dump(to_plain(task.config), file)
                file.seek(0)
                processes.append(subprocess.Popen(_COMMAND, stdin=file, env=environment))
        yield processes
    finally:
        for process in processes:
            process.kill()  # nothing happens to one that has ended
            process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for the end of all, and return their exit codes."""
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_S)
    return [process.returncode for process in processes]


def _why(task: Pretrain, code: int) -> str:
    """Name a training that has failed, with the reason that it has noted, if it could."""
    last = read_attempts(task.run_dir)[-1:]
    noted = [str(event["error"]) for event in last if event["event"] == "failed"]
    return f"{task.config.run_dir}: {noted[0] if noted else f'ended with code {code}'}"


def _stop(processes: Sequence[subprocess.Popen[bytes]], budget_s: float) -> None:
    """Let all save and end; those that cannot in time are left to the end of the block."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # a second one, after Slurm's, changes nothing
    end = time.monotonic() + budget_s
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(POLL_S)


def main() -> None:
    """Make the training that comes in on standard input; a process of ``Together``."""
    config = from_plain(TrainConfig, json.load(sys.stdin))
    try:
        Marking(Pretrain(config))()
    except StoppedError as stop:
        _log.info("%s", stop)
        raise SystemExit(RUN_AGAIN) from None
    except Exception:
        _log.exception("failed")  # into the run's own log: the others share standard error
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
