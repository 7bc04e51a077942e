"""Stopping a run: a signal sets a reason; training reads it every step and raises ``Preempted``.

A launcher installs ``StopSignal`` before the slow import of torch; nothing here imports torch.
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
    """Why a rank should stop; the largest value over all ranks decides."""

    NONE = 0
    SAVE_FAILED = 1  # an asynchronous save failed: save again, on all ranks at the same step
    SIGTERM = 2  # cancelled, requeued by hand, or preempted without warning
    SIGUSR2 = 3  # warning of the scheduler before the time limit or preemption


_REASONS = {
    signal.SIGUSR2: StopReason.SIGUSR2,
    signal.SIGTERM: StopReason.SIGTERM,
    signal.SIGINT: StopReason.SIGTERM,
}
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Preempted(BaseException):
    """The run was asked to stop, and every rank stops at the same step.

    Not an ``Exception``, so that no import during which a signal raises it swallows it. ``step``
    is the saved step to resume from, None outside of training; ``save_error`` is the reason why
    the latest step could not be saved.
    """

    def __init__(self, step: int | None, reason: StopReason, save_error: str = "") -> None:
        where = "" if step is None else f"; saved at step {step}"
        super().__init__(f"asked to stop ({reason.name}){where}")
        self.step, self.reason, self.save_error = step, reason, save_error


class LostPeerError(RuntimeError):
    """A collective failed because another rank is gone, or did not join in time."""


class DeviceFaultError(RuntimeError):
    """The GPU of this rank failed, not the program; another node may work."""


class StopSignal:
    """Context manager that handles SIGUSR2 and SIGTERM, the only such handlers of a process.

    The handler sets ``reason``. After ``listen``, the first signal also raises ``Preempted``
    immediately, except in ``deferred``, where training reads the reason between steps. In forked
    children the inherited handler does nothing. SIGUSR1 is left to NCCL. Outside the main thread,
    where Python cannot install handlers, no stop is ever requested. With ``ctrl_c``, the first
    Ctrl-C counts as SIGTERM, and a second one raises KeyboardInterrupt.
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
        """Unblock the signals that the launcher blocked; from now on, the first one raises.

        Raises:
            Preempted: a signal was received earlier; call this where it is caught.
        """
        self._raises = True
        self._unblock()
        if self.reason:
            self._raise()

    def ignore(self) -> None:
        """Keep further signals from raising: how this process ends is already decided."""
        self._raises = False

    def stop_behind(self, error: BaseException) -> Preempted | None:
        """Return the stop that caused an error; None if no stop was raised.

        An exception raised during an import may emerge as another error: Python 3.11 turns it into
        a RuntimeError while a class is created, and libraries turn it into a missing module.
        """
        if isinstance(error, Preempted):
            return error
        return Preempted(None, self.reason) if self._has_raised else None

    @contextmanager
    def deferred(self) -> Iterator[StopSignal]:
        """Only set ``reason`` in the block; installs the handlers if no launcher has."""
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
        # no file, collective or log: this may run between any two instructions
        if os.getpid() != self._owner:
            return
        # keep the stronger reason: a SIGTERM after the warning does not replace it
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
    """Callbacks of a launcher during training; they do nothing by default."""

    def on_start(self, step: int) -> None:
        """Called with the first step once the checkpoint is loaded; main rank only."""

    def on_step(self, step: int) -> None:
        """Called with the number of steps done, before training and after each step; all ranks."""

    def before_publish(self) -> None:
        """Raise if another attempt has taken over the run; main rank, before each checkpoint."""
