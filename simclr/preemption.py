"""Stopping a run: a signal sets a reason, training reads it once a step and raises ``Preempted``.

A launcher installs ``StopSignal`` before torch, which takes long; nothing here imports it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import NoReturn


class StopReason(IntEnum):
    """Why a rank should stop; the largest over all ranks counts."""

    NONE = 0
    SAVE_FAILED = 1  # a checkpoint beside the loop could not be saved: save again, in step
    SIGTERM = 2  # cancelled, requeued by hand, or preempted without a warning
    SIGUSR2 = 3  # the scheduler announces the end, for the time limit or preemption


_REASONS = {
    signal.SIGUSR2: StopReason.SIGUSR2,
    signal.SIGTERM: StopReason.SIGTERM,
    signal.SIGINT: StopReason.SIGTERM,
}
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Preempted(BaseException):
    """The run was asked to stop, and every rank stops at the same step.

    Not an ``Exception``: a signal may raise it in an import, where nobody may swallow it. ``step``
    counts the optimizer steps that are saved, and is None outside of training; ``save_error`` says
    why the latest step could not be saved.
    """

    def __init__(self, step: int | None, reason: StopReason, save_error: str = "") -> None:
        where = "" if step is None else f"; saved at step {step}"
        super().__init__(f"asked to stop ({reason.name}){where}")
        self.step, self.reason, self.save_error = step, reason, save_error


class LostPeerError(RuntimeError):
    """A collective failed because another rank is gone, or did not come in time."""


class DeviceFaultError(RuntimeError):
    """The GPU of this rank has failed, not the program; another node may be sound."""


class StopSignal:
    """Context manager that receives SIGUSR2 and SIGTERM, the only handlers of a process.

    The handler sets ``reason``. After ``listen`` the first signal also raises ``Preempted`` where
    it comes, except in ``deferred``, where training reads the reason between two steps. Forked
    children inherit the handler but not its effect. SIGUSR1 is left alone, NCCL uses it. Outside
    the main thread, where Python installs no handlers, no stop is ever requested. With ``ctrl_c``
    the first Ctrl-C counts as SIGTERM; a second one is Python's own.
    """

    def __init__(self, *, ctrl_c: bool = False) -> None:
        self.reason = StopReason.NONE
        self._numbers = (*STOP_SIGNALS, signal.SIGINT) if ctrl_c else STOP_SIGNALS
        self._raises = self._has_raised = False
        self._owner = os.getpid()
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def listen(self) -> None:
        """Let signals through that the launcher blocked; from now on the first one raises.

        Raises:
            Preempted: a signal came before; call this where it is caught.
        """
        self._raises = True
        self._unblock()
        if self.reason:
            self._raise()

    def ignore(self) -> None:
        """Let further signals raise nothing: it is settled already how this process ends."""
        self._raises = False

    def stop_behind(self, error: BaseException) -> Preempted | None:
        """Return the stop that has made this process fail; None if it failed by itself.

        What interrupts an import may come out of it as another error: Python 3.11 turns what is
        raised while a class is made into a RuntimeError, libraries turn it into a missing module.
        """
        if isinstance(error, Preempted):
            return error
        return Preempted(None, self.reason) if self._has_raised else None

    @contextmanager
    def deferred(self) -> Iterator[StopSignal]:
        """Only set ``reason`` in the block; installs the handlers where no launcher has."""
        if not self._previous:
            with self:
                self._unblock()
                yield self
            return
        raises, self._raises = self._raises, False
        try:
            yield self
        finally:
            self._raises = raises and not self.reason

    def _unblock(self) -> None:
        if self._previous:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # no file, no collective, no log: this may run between any two instructions
        if os.getpid() != self._owner:
            return
        # the stronger reason stays: a SIGTERM that follows the warning does not take it back
        self.reason = max(self.reason, _REASONS[signal.Signals(number)])
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(2, b"\nsaving; press Ctrl-C again to quit immediately\n")
        if self._raises:
            self._raise()

    def _raise(self) -> NoReturn:
        self._raises, self._has_raised = False, True
        raise Preempted(None, self.reason)


class TrainerHooks:
    """What a launcher does while training runs; by default nothing."""

    def on_start(self, step: int) -> None:
        """Take the step at which training begins, once the checkpoint is loaded; main rank."""

    def on_step(self, step: int) -> None:
        """Take the number of steps done: before training, and after each step; every rank."""

    def before_publish(self) -> None:
        """Raise if another attempt has taken the run over; main rank, before each checkpoint."""
