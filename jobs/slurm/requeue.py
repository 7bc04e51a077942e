"""End a process that was asked to stop; the state of its job decides whether it is requeued.

A signal does not carry its reason. Requeueing a job that a person has cancelled would revive it,
and a job that merely exits while it is being preempted is lost. docs/preemption.md has the table.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from jobs.run_dir import idle_attempts, read_attempts, record_event
from jobs.slurm import client as slurm
from jobs.slurm.environment import Launcher, RankEnvironment, configure_logging, current_rank
from simclr.preemption import StopReason, StopSignal

RUN_AGAIN = 75  # exit code inside a job: stopped, run again; EX_TEMPFAIL of sysexits.h
STAY_S = 90.0  # longer than any grace period that ends such a stay; after it, exiting is safe
# An unreachable controller neither kills nor requeues: there is time until it is back.
ASK_S = 6 * 3600.0
UNTIL_KILLED_S = 6 * 3600.0
LONGEST_PAUSE_S = 10.0
SIGNALING_S = 3.0
# hold the job after this many consecutive attempts that made no progress, by the run's own fault
MAX_IDLE = 3

_log = logging.getLogger("simclr")


class Decision(Enum):
    """What happens to the job next."""

    quit = "quit"  # exit: Slurm handles the rest, or nothing more can be done
    requeue = "requeue"  # ask Slurm to start the job again, then quit
    stay = "stay"  # reason unknown: exiting would lose the job if it is being preempted
    hold = "hold"  # requeued, it would only end at the same step again


@dataclass(frozen=True, slots=True)
class RunStop:
    """A stop on one rank; the others read the decision from its record in ``attempts.jsonl``."""

    env: RankEnvironment
    reason: StopReason | None  # the signal; None when another rank is lost
    run_dir: Path | None = None  # None for work other than a run, done by one process
    attempt: int | None = None  # number of the attempt on the rank that records the stop; else None
    step: int = 0  # optimizer steps done and saved
    cause: str = ""  # in words; if empty, signal and decision explain it
    save_error: str = ""  # why the latest step could not be saved

    @property
    def event(self) -> dict[str, Any]:
        """The facts of the stop, without the decision."""
        facts = {"step": self.step, "signal": self.reason.name if self.reason else "lost"}
        return facts | ({"save_error": self.save_error} if self.save_error else {}) | self.env.start

    def idle_attempts(self) -> int:
        """Count the job's latest consecutive attempts that saved nothing by their own fault."""
        if self.run_dir is None or self.attempt is None:
            return 0
        own = {"attempt": self.attempt, "event": "stop", "time": time.time()} | self.event
        return idle_attempts([*read_attempts(self.run_dir), own], self.env.job_id, self.step)

    def record(self, decision: Decision, reason: str = "") -> None:
        """Log the stop with the decision; only the reporting rank also records it."""
        cause = "; ".join(filter(None, (self.cause, self.save_error, reason)))
        _log.info("stop (%s): %s", self.event["signal"], cause or decision.value)
        if self.run_dir and self.attempt:
            facts = self.event | ({"cause": cause} if cause else {})
            record_event(self.run_dir, self.attempt, "stop", decision=decision.value, **facts)

    def decision(self) -> Decision | None:
        """Return the decision for this start of the job; None until it is recorded.

        If the run has been started again since, it is ``quit``, whatever was decided.
        """
        succeeded = False
        for event in reversed(read_attempts(self.run_dir) if self.run_dir else []):
            own = self.env.start.items() <= event.items()
            if own and succeeded:
                return Decision.quit
            if own and event["event"] == "stop":
                return Decision(event["decision"])
            succeeded |= not own and event["event"] == "start"
        return None


def requeue_decision(state: str, *, preempted: bool, warned: bool) -> Decision | None:
    """Return the decision from JobState and whether PreemptTime is set; None means ask again.

    ``warned``: some rank received SIGUSR2, not only SIGTERM; or a rank is lost.
    """
    if state == "SIGNALING":
        return None
    if state != "RUNNING":
        return Decision.quit  # cancelled, requeued by Slurm, or its node is lost
    if preempted or warned:
        return Decision.requeue  # in its grace period, or near the time limit
    return Decision.stay


def poll_job_state(env: RankEnvironment, *, warned: bool) -> Decision:
    """Return the decision from the job's state, polling while SIGNALING; SlurmError: no answer."""
    end = time.monotonic() + SIGNALING_S
    while True:
        job = slurm.show_job(env.job_id)
        if job.restarts != env.restarts:
            return Decision.quit  # already restarted: requeueing would end our successor
        # A job that stays SIGNALING counts as running.
        state = job.state if time.monotonic() < end else job.state.replace("SIGNALING", "RUNNING")
        decision = requeue_decision(state, preempted=job.preempted, warned=warned)
        if decision is not None:
            return decision
        time.sleep(0.2)


def decide_and_requeue(stop: RunStop) -> Decision:
    """Decide what happens to the job, carry it out and record it.

    A controller that does not answer is asked again for up to ``ASK_S``; usually SIGKILL ends this
    process before that, at the end of its grace period or time limit.
    """
    if shutil.which("scontrol") is None:
        stop.record(Decision.stay, "scontrol is not installed here: waited for Slurm")
        return Decision.stay
    end, pause_s = time.monotonic() + ASK_S, 1.0
    while time.monotonic() < end:
        try:
            return _decide_once(stop)
        except Exception as error:  # an answer that cannot be parsed counts as none
            _log.warning("Slurm did not answer, asking again: %s", error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    stop.record(Decision.stay, f"Slurm gave no answer for {ASK_S / 3600:.0f} h")
    return Decision.stay


def _decide_once(stop: RunStop) -> Decision:
    job_id, reason = stop.env.job_id, ""
    decision = poll_job_state(stop.env, warned=stop.reason in (None, StopReason.SIGUSR2))
    idle = stop.idle_attempts()
    if decision is Decision.requeue and idle >= MAX_IDLE:
        reason = (
            f"{idle} attempts in a row saved nothing after step {stop.step}: held; read the log, "
            f"then scontrol release {job_id}"
        )
        stop.record(Decision.hold, reason)  # before the hold, which ends this process
        slurm.hold(job_id, reason)
        return Decision.hold
    if decision is Decision.requeue:
        try:
            slurm.requeue(job_id)
        except slurm.RefusedError as error:
            # Staying would only block the nodes; but Slurm may itself requeue a job that it
            # preempts, if the job still exists then.
            denied = isinstance(error, slurm.DeniedError) and stop.reason is not None
            decision = Decision.stay if denied else Decision.quit
            waits = "waited for Slurm to requeue it; else " if denied else ""
            reason = f"{error}; {waits}the same command continues"
    stop.record(decision, reason)
    return decision


def exit_for_requeue(
    stop: RunStop, *, reports: bool | None = None, code: int = RUN_AGAIN
) -> NoReturn:
    """End this process of a Slurm job so that the job is requeued if, and only if, it should be.

    Neither returns nor raises: submitit would record a success or an error, and use it in the
    next attempt. ``reports``: whether this rank asks Slurm; None: only the main rank does.
    """
    if stop.env.is_main if reports is None else reports:
        if decide_and_requeue(stop) is Decision.stay:
            # a warning is followed by SIGKILL, at the end of the grace period or time limit
            time.sleep(UNTIL_KILLED_S if stop.reason is StopReason.SIGUSR2 else STAY_S)
    else:
        # Exiting first would end the reporting rank, by --kill-on-bad-exit: before it has
        # decided, while it stays, or before it has requested the hold, which ends all ranks.
        end = time.monotonic() + ASK_S + STAY_S
        while time.monotonic() < end and stop.decision() not in (Decision.quit, Decision.requeue):
            time.sleep(0.1 if stop.run_dir else 1.0)
    end_process(code)


def end_process(code: int) -> NoReturn:
    """End this process at once, after flushing its output."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: submitit would catch it, and Python would wait for hung threads.
    os._exit(code)


@contextmanager
def requeued_if_stopped() -> Iterator[RankEnvironment]:
    """Run a block that may be interrupted anywhere; a stop signal requeues its Slurm job."""
    env = current_rank()
    configure_logging(env)
    if env.launcher is not Launcher.slurm:
        yield env
        return
    with StopSignal() as signals:
        try:
            signals.listen()
            yield env
        except BaseException as error:
            signals.ignore()
            stop = signals.stop_behind(error)
            if stop is None:
                raise
            exit_for_requeue(RunStop(env, stop.reason))
