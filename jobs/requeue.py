"""How an attempt ends when it was asked to stop: Slurm's own word on the job decides.

A signal does not say why it came. Requeueing a job that a person has cancelled would bring it
back to life, and a job that merely leaves while it is being preempted is lost.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Any, NoReturn, Protocol

from jobs import slurm
from jobs.joblog import log_as
from jobs.place import Kind, Place, current_place
from simclr.preemption import Stop

RUN_AGAIN = 75  # exit code inside a job: stopped and saved; sysexits.h calls it a temporary failure
STAY_S = 90.0  # longer than any grace that ends such a stay; after it, leaving cannot do harm
WAIT_S = 120.0  # of other ranks for the main one, which ends them by leaving
SIGNALING_S = 3.0
RETRIES = 3
MAX_IDLE_STOPS = 3

_NOTED = {signal.SIGUSR2: Stop.warning, signal.SIGTERM: Stop.terminate}
_log = logging.getLogger("simclr")


class Decision(Enum):
    """What the main rank does next."""

    quit = "quit"  # Slurm is ending the job and knows what comes after
    requeue = "requeue"  # ask Slurm to start the job again, then quit
    stay = "stay"  # nobody says why: leaving would lose the job if it is being preempted
    ask_again = "ask again"
    hold = "hold"  # it would come back only to stop at the same step again


class StopRecord(Protocol):
    """What a run writes down of a stop, where all its ranks can read it."""

    def idle_stops(self) -> int:
        """Count the latest stops in a row at the same step, this one included."""

    def decided(self, decision: Decision) -> None:
        """Write the decision; main rank only."""

    def decision(self) -> Decision | None:
        """Read the decision, if it is there."""


class Interrupted(BaseException):
    """A stop signal came while there was nothing to save.

    Attributes:
        stop: what was told.
    """

    def __init__(self, stop: Stop) -> None:
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


def settle(job_id: str, stop: Stop, sleep: Callable[[float], None] = time.sleep) -> Decision:
    """Ask Slurm until it is clear what to do; without any answer, stay."""
    warned, waited, failures = stop is Stop.warning, 0.0, 0
    while failures < RETRIES:
        try:
            job = slurm.show_job(job_id)
        except slurm.SlurmError as error:
            failures += 1
            _log.warning("%s", error)
            sleep(1.0)
            continue
        # A job that stays SIGNALING is running.
        state = "RUNNING" if waited >= SIGNALING_S else job.state
        decision = decide(state, preempted=job.preempted, warned=warned)
        if decision is not Decision.ask_again:
            return decision
        waited += 0.2
        sleep(0.2)
    return Decision.stay


def leave(place: Place, stop: Stop, record: StopRecord | None = None) -> NoReturn:
    """End this process of a Slurm job so that the job comes back if, and only if, it should.

    Neither returns nor raises: submitit would write down a success or an error, and believe it
    in the next attempt.

    Args:
        place: of this process.
        stop: what the ranks were told.
        record: through which the main rank tells the others its decision.
    """
    for number in _NOTED:
        signal.signal(number, _ignore)  # decided already; a second signal changes nothing
    if place.is_main:
        decision = _carry_out(place.job_id, stop, record)
        _log.info("stop (%s): %s", stop.name, decision.value)
        if decision is Decision.stay:
            time.sleep(STAY_S)
    else:
        # Leaving first would end the main rank before it has asked: --kill-on-bad-exit.
        _wait_for_main(record)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(RUN_AGAIN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` in the block at the first stop signal, and note later ones only.

    SIGUSR2, which the launcher blocked until somebody listens, is let through.
    """
    listening = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        """Leave the block, once, in the process that entered it."""
        nonlocal listening
        if listening and os.getpid() == owner:
            listening = False
            raise Interrupted(_NOTED[signal.Signals(number)])

    owner = os.getpid()
    previous = {number: signal.signal(number, interrupt) for number in _NOTED}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def requeued_if_stopped() -> Iterator[Place]:
    """Run a block that may be cut anywhere; in a Slurm job, a stop signal requeues the job."""
    place = current_place()
    log_as(place)
    if place.kind is not Kind.slurm:
        yield place
        return
    with interruptible():
        try:
            yield place
        except Interrupted as event:
            leave(place, event.stop)


@contextmanager
def saving_at_interrupt(place: Place) -> Iterator[None]:
    """Let the first Ctrl-C in a terminal mean what SIGTERM means: save and stop."""

    def ask(number: int, frame: FrameType | None) -> None:
        """Ask this process to stop; a second Ctrl-C is Python's own."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nsaving; Ctrl-C again leaves at once\n")
        os.kill(os.getpid(), signal.SIGTERM)

    if place.kind is not Kind.here:
        yield
        return
    previous: Callable[..., Any] | int | None = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _carry_out(job_id: str, stop: Stop, record: StopRecord | None) -> Decision:
    decision = settle(job_id, stop)
    if decision is Decision.requeue and record and record.idle_stops() >= MAX_IDLE_STOPS:
        decision = Decision.hold
    if decision is Decision.requeue and not _requeue(job_id):
        decision = Decision.stay  # at the end of its grace Slurm requeues by itself
    if record:
        record.decided(decision)
    return decision


def _requeue(job_id: str) -> bool:
    for _ in range(RETRIES):
        try:
            slurm.requeue(job_id)
        except slurm.SlurmError as error:
            _log.warning("%s", error)
            time.sleep(1.0)
        else:
            return True
    return False


def _wait_for_main(record: StopRecord | None) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if record and record.decision() not in (None, Decision.stay):
            return
        time.sleep(0.1)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Take a signal without effect; unlike SIG_IGN it is not handed down to children."""
