"""A rank that is left behind comes in; its job ends with the reason named, and comes back.

Training cannot go on without one of its ranks. Those that are left find out at different moments
and by different signs; the first of them speaks for all.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import NoReturn

from jobs.attempts import (
    RunAttempt,
    Stopping,
    idle_attempts,
    note,
    number_of,
    read_attempts,
    saved_step,
)
from jobs.slurm import client as slurm
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.heartbeat import folder_of, missing_ranks
from jobs.slurm.preemption import (
    MAX_IDLE,
    RUN_AGAIN,
    Decision,
    deafen,
    end_process,
    hold,
    leave,
    settle,
)
from simclr.preemption import LostPeerError, StopReason

# Slurm kills the ranks of a step KillWait (30 s, at least 5) after one of them has died.
WATCH_S = 2.5
LAST_S = 20.0  # and asks for itself before that, should the run folder hang
_SPEAKER = "speaker"
_log = logging.getLogger("simclr")


def abandon(run_dir: Path, env: RankEnvironment, cause: str, code: int = RUN_AGAIN) -> NoReturn:
    """End this process, whose run cannot go on, so that the job comes back as long as that helps.

    Outside Slurm nobody would start it again: the cause is noted, and the process fails.

    Args:
        run_dir: run folder.
        env: of this process.
        cause: in words.
        code: that it leaves with, in a job of Slurm.
    """
    deafen()
    _log.error("%s", cause)
    end_anyway(env, code)
    speaks, number = speaks_first(run_dir, env), number_of(read_attempts(run_dir), env)
    if env.launcher is not Launcher.slurm:
        if speaks and number:
            note(run_dir, number, "failed", error=cause)
        end_process(1)
    step = saved_step(run_dir)
    record = Stopping(run_dir, env, number if speaks else None, step, "lost", cause)
    # As after a warning: it may come back if Slurm has nothing else in mind with it.
    leave(env, StopReason.SIGUSR2, record, speaks=speaks and number is not None, code=code)


def end_anyway(env: RankEnvironment, code: int, after_s: float = LAST_S) -> None:
    """End this process after a while, whatever hangs: it may be the run folder itself."""

    def end() -> None:
        """Ask to come back without a look at the folder."""
        try:
            if (
                env.launcher is Launcher.slurm
                and settle(env, StopReason.SIGUSR2) is Decision.requeue
            ):
                slurm.requeue(env.job_id)
        finally:
            os._exit(code)

    timer = threading.Timer(after_s, end)
    timer.daemon = True
    timer.start()


def speaks_first(run_dir: Path, env: RankEnvironment) -> bool:
    """Return True in the first process of this start of the job that asks, False in all others."""
    folder = folder_of(run_dir, env)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the one thing that file systems let only one process do
        os.close(os.open(folder / _SPEAKER, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError as error:
        _log.warning("nothing can be written in %s: %s", run_dir, error)
        return env.is_main
    return True


def who_is_lost(run_dir: Path, env: RankEnvironment) -> str:
    """Name the ranks that this one misses, as far as their pulses tell."""
    return missing_ranks(run_dir, env, WATCH_S) or "no rank has fallen silent or behind"


def lost_peer(event: BaseException | None) -> bool:
    """Say whether the loss of another rank is behind an exception.

    The signal with which srun ends the ranks that are left may interrupt what was on its way.
    """
    while event is not None:
        if isinstance(event, LostPeerError):
            return True
        event = event.__cause__ or event.__context__
    return False


def note_failure(run_dir: Path, env: RankEnvironment, error: BaseException) -> None:
    """Note an error of this rank, unless another one has been quicker."""
    number = number_of(read_attempts(run_dir), env)
    if number and speaks_first(run_dir, env):
        where = f"rank {env.rank} on {env.node}: " if env.num_ranks > 1 else ""
        note(run_dir, number, "failed", error=f"{where}{type(error).__name__}: {error}")


def told_by_a_peer(run_dir: Path, env: RankEnvironment) -> bool:
    """Say whether another rank has noted a failure of its own: then no rank is simply lost."""
    events = read_attempts(run_dir)
    number = number_of(events, env)
    return any(e["attempt"] == number and e["event"] == "failed" for e in events)


def clear(run_dir: Path, env: RankEnvironment) -> None:
    """Remove pulses and the word of earlier starts; main rank, before this one begins."""
    own = folder_of(run_dir, env)
    for folder in own.parent.glob("*"):
        if folder != own:
            # a rank that was left behind may still write there
            shutil.rmtree(folder, ignore_errors=True)
    (own / _SPEAKER).unlink(missing_ok=True)


def hold_if_futile(attempt: RunAttempt, env: RankEnvironment) -> None:
    """Hold the job instead of training, if its last attempts came to nothing without a word."""
    events = [e for e in read_attempts(attempt.run_dir) if e["attempt"] != attempt.number]
    step = saved_step(attempt.run_dir)
    idle = idle_attempts(events, env.job_id, step)
    if env.launcher is Launcher.slurm and idle >= MAX_IDLE:
        record = Stopping(attempt.run_dir, env, attempt.number, step, "none")
        hold(env.job_id, record, idle)
        end_process(RUN_AGAIN)
