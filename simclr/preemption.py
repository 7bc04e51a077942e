"""A stop signal becomes a question that the training loop asks once a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Protocol

_Handler = Callable[[int, FrameType | None], object] | int | None


class StopReason(IntEnum):
    """What a rank has been told; the largest over all ranks counts."""

    NONE = 0
    SAVE_FAILED = 1  # nobody asks to stop, but a checkpoint beside the loop could not be saved
    SIGTERM = 2  # SIGTERM: cancelled, requeued by hand, or preempted without a warning
    SIGUSR2 = 3  # SIGUSR2: the scheduler announces the end, for the time limit or preemption


class Preempted(Exception):  # noqa: N818 - it reports an event, not an error
    """The run was asked to stop, and every rank has stopped at the same step.

    Attributes:
        step: optimizer steps done and saved; earlier than the last one if that was skipped.
        stop: what the ranks had been told.
    """

    def __init__(self, step: int, stop: StopReason) -> None:
        super().__init__(f"asked to stop ({stop.name}); saved at step {step}")
        self.step = step
        self.stop = stop


class PreemptionGuard:
    """Context manager that notes SIGUSR2 and SIGTERM instead of dying of them.

    The handler only sets a flag: no file, no collective, no log. Children of the process inherit
    the handler but not its effect. SIGUSR1 is left alone, NCCL uses it. Outside the main thread,
    where Python installs no handlers, the guard never asks for a stop.
    """

    _NOTES = {signal.SIGUSR2: StopReason.SIGUSR2, signal.SIGTERM: StopReason.SIGTERM}  # noqa: RUF012

    def __init__(self) -> None:
        self.requested = StopReason.NONE
        self._pid = os.getpid()
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> PreemptionGuard:
        if threading.current_thread() is threading.main_thread():
            for number in self._NOTES:
                self._previous[number] = signal.signal(number, self._note)
            # A launcher may have blocked them until somebody listens.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._NOTES)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A forked child has inherited this handler, and was not meant. The stronger word stays: a
        # SIGTERM that follows the warning does not take it back.
        if os.getpid() == self._pid:
            self.requested = max(self.requested, self._NOTES[signal.Signals(number)])


# Here, without torch: whoever catches it may have been stopped in the import of torch, which cannot
# be begun a second time.
class LostPeerError(RuntimeError):
    """A collective failed because another rank is gone, or did not come in time."""


class Supervisor(Protocol):
    """A launcher's side of a run; for launchers that may start a run twice, or watch its ranks."""

    def reached(self, step: int) -> None:
        """Hear how many steps are done: before training, and after each; on every rank."""

    def started(self, step: int) -> None:
        """Hear at which step training begins, once the checkpoint is loaded; main rank only."""

    def may_publish(self) -> None:
        """Raise when another attempt has taken the run over; main rank, before it publishes."""


class Unsupervised:
    """Lets a run publish whatever it saves: nobody else is at work in its folder."""

    def reached(self, step: int) -> None:
        """Take no note."""

    def started(self, step: int) -> None:
        """Take no note."""

    def may_publish(self) -> None:
        """Allow it."""
