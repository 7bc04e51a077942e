"""How an attempt ends when it was asked to stop: Slurm's own word on the job decides.

A signal does not say why it came. Requeueing a job that a person has cancelled would bring it
back to life, and a job that merely leaves while it is being preempted is lost.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Any, NoReturn, Protocol

from jobs.slurm import client as slurm
from jobs.slurm.environment import Launcher, RankEnvironment, current_rank, log_as
from simclr.preemption import StopReason

RUN_AGAIN = 75  # exit code inside a job: stopped, run me again; sysexits.h: temporary failure
STAY_S = 90.0  # longer than any grace that ends such a stay; after it, leaving cannot do harm
WAIT_S = 120.0  # of other ranks for the one that asks, which ends them by leaving
SIGNALING_S = 3.0
RETRIES = 3
MAX_IDLE = 3  # attempts in a row that saved nothing; a fourth would only burn hours

_NOTED = {signal.SIGUSR2: StopReason.SIGUSR2, signal.SIGTERM: StopReason.SIGTERM}
_log = logging.getLogger("simclr")


class Decision(Enum):
    """What the main rank does next."""

    quit = "quit"  # Slurm is ending the job and knows what comes after
    requeue = "requeue"  # ask Slurm to start the job again, then quit
    stay = "stay"  # nobody says why: leaving would lose the job if it is being preempted
    ask_again = "ask again"
    hold = "hold"  # it would come back only to end at the same step again


class StopRecord(Protocol):
    """What a run writes down of a stop, where all its ranks can read it."""

    @property
    def step(self) -> int:
        """The step that is saved."""

    def idle_attempts(self) -> int:
        """Count the latest attempts in a row that saved nothing, this one included."""

    def decided(self, decision: Decision, reason: str = "") -> None:
        """Write the decision, with a reason if it has one; speaker only."""

    def decision(self) -> Decision | None:
        """Read the decision, if it is there."""


class Interrupted(BaseException):
    """A stop signal came while there was nothing to save.

    Attributes:
        stop: what was told.
    """

    def __init__(self, stop: StopReason) -> None:
        super().__init__(stop.name)
        self.stop = stop


def decide(state: str, *, preempted: bool, warned: bool) -> Decision:
    """Return what to do, from Slurm's word on the job and the signal.

    Args:
        state: JobState of ``scontrol show job``.
        preempted: its PreemptTime is set.
        warned: SIGUSR2 came, on any rank, not only SIGTERM.
    """
    if state == "SIGNALING":
        return Decision.ask_again
    if state != "RUNNING":
        return Decision.quit  # cancelled, requeued by Slurm, or its node is lost
    if preempted or warned:
        return Decision.requeue  # within grace, or the time limit is near
    return Decision.stay


def settle(
    env: RankEnvironment, stop: StopReason, sleep: Callable[[float], None] = time.sleep
) -> Decision:
    """Ask Slurm until it is clear what to do; without any answer, stay."""
    warned, waited, failures = stop is StopReason.SIGUSR2, 0.0, 0
    while failures < RETRIES:
        try:
            job = slurm.show_job(env.job_id)
        except slurm.SlurmError as error:
            failures += 1
            _log.warning("%s", error)
            sleep(1.0)
            continue
        if job.restarts != env.restarts:
            return Decision.quit  # it runs again already: requeueing would end our successor
        # A job that stays SIGNALING is running.
        state = "RUNNING" if waited >= SIGNALING_S else job.state
        decision = decide(state, preempted=job.preempted, warned=warned)
        if decision is not Decision.ask_again:
            return decision
        waited += 0.2
        sleep(0.2)
    return Decision.stay


def leave(
    env: RankEnvironment,
    stop: StopReason,
    record: StopRecord | None = None,
    *,
    speaks: bool | None = None,
    code: int = RUN_AGAIN,
) -> NoReturn:
    """End this process of a Slurm job so that the job comes back if, and only if, it should.

    Neither returns nor raises: submitit would write down a success or an error, and believe it
    in the next attempt.

    Args:
        env: of this process.
        stop: what the ranks were told.
        record: through which one rank tells the others its decision.
        speaks: whether it is this rank that asks Slurm; the main one if not said.
        code: that the process leaves with.
    """
    deafen()
    if env.is_main if speaks is None else speaks:
        decision = _carry_out(env, stop, record)
        _log.info("stop (%s): %s", stop.name, decision.value)
        if decision is Decision.stay:
            time.sleep(STAY_S)
    else:
        # Leaving first would end the one who asks before it has done so: --kill-on-bad-exit.
        _wait_for_decision(record)
    end_process(code)


def deafen() -> None:
    """Let further stop signals change nothing: it is decided already that this process ends."""
    # Python installs handlers in the main thread only; elsewhere those that note go on noting.
    if threading.current_thread() is threading.main_thread():
        for number in _NOTED:
            signal.signal(number, _ignore)


def end_process(code: int) -> NoReturn:
    """End this process at once, with all that it has said written out."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: submitit would catch it, and Python would wait for threads that hang.
    os._exit(code)


def hold(job_id: str, record: StopRecord, idle: int) -> Decision:
    """Take a job that makes no progress out of the race, with the reason where people look."""
    reason = (
        f"{idle} attempts in a row saved nothing after step {record.step}: held; read the log, "
        f"then scontrol release {job_id}"
    )
    _log.error("%s", reason)
    # first: the hold ends this process
    record.decided(Decision.hold, reason)
    try:
        slurm.hold(job_id, reason)
    except slurm.SlurmError as error:
        _log.warning("%s", error)
    return Decision.hold


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Note stop signals in the block; what is yielded, once called, raises the first of them.

    To be called inside the ``try`` that catches ``Interrupted``: it lets SIGUSR2 and SIGTERM
    through, which the launcher blocked until somebody listens, and one that came while Python was
    still importing is delivered there and then. Raised outside, it would fail the job.
    """
    owner, noted, listening = os.getpid(), StopReason.NONE, False

    def interrupt(number: int, frame: FrameType | None) -> None:
        """Note the signal, in the process that entered the block, and leave the block, once."""
        nonlocal noted, listening
        if os.getpid() != owner:
            return
        noted = noted or _NOTED[signal.Signals(number)]
        if listening:
            listening = False
            raise Interrupted(noted)

    def listen() -> None:
        """Raise what was noted; from here on the handler raises."""
        nonlocal listening
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTED)
        listening = True  # first: what comes from here on raises by itself
        if noted:
            listening = False
            raise Interrupted(noted)

    previous = {number: signal.signal(number, interrupt) for number in _NOTED}
    try:
        yield listen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def requeued_if_stopped() -> Iterator[RankEnvironment]:
    """Run a block that may be cut anywhere; in a Slurm job, a stop signal requeues the job."""
    env = current_rank()
    log_as(env)
    if env.launcher is not Launcher.slurm:
        yield env
        return
    with interruptible() as listen:
        try:
            listen()
            yield env
        except Interrupted as event:
            leave(env, event.stop)


@contextmanager
def saving_at_interrupt(env: RankEnvironment) -> Iterator[None]:
    """Let the first Ctrl-C in a terminal mean what SIGTERM means: save and stop."""

    def ask(number: int, frame: FrameType | None) -> None:
        """Ask this process to stop; a second Ctrl-C is Python's own."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nsaving; Ctrl-C again leaves at once\n")
        os.kill(os.getpid(), signal.SIGTERM)

    if env.launcher is not Launcher.here:
        yield
        return
    previous: Callable[..., Any] | int | None = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _carry_out(env: RankEnvironment, stop: StopReason, record: StopRecord | None) -> Decision:
    decision = settle(env, stop)
    if decision is Decision.requeue and record:
        idle = record.idle_attempts()
        if idle >= MAX_IDLE:
            return hold(env.job_id, record, idle)
    if decision is Decision.requeue:
        decision = _requeue(env.job_id)
    if record:
        record.decided(decision)
    return decision


def _requeue(job_id: str) -> Decision:
    for _ in range(RETRIES):
        try:
            slurm.requeue(job_id)
        except slurm.RefusedError as error:
            _log.warning("%s; the same command goes on", error)
            return Decision.quit  # staying would only keep the nodes from whoever wants them
        except slurm.SlurmError as error:
            _log.warning("%s", error)
            time.sleep(1.0)
        else:
            return Decision.requeue
    return Decision.stay  # at the end of its grace Slurm requeues by itself


def _wait_for_decision(record: StopRecord | None) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        # With "stay" the one who asks sleeps on; who left now would end it, and the job.
        if record and record.decision() not in (None, Decision.stay):
            return
        time.sleep(0.1)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Take a signal without effect; unlike SIG_IGN it is not handed down to children."""
