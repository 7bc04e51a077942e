"""What a run tells whoever started it, and asks: its first step, and leave to publish."""

from __future__ import annotations

from typing import Protocol


class Supervisor(Protocol):
    """A launcher's side of a run, on the main rank; for launchers that may start a run twice."""

    def started(self, step: int) -> None:
        """Hear at which step training begins, once the checkpoint is loaded."""

    def may_publish(self) -> None:
        """Raise when another attempt has taken the run over; asked before each publication."""


class Unsupervised:
    """Lets a run publish whatever it saves: nobody else is at work in its folder."""

    def started(self, step: int) -> None:
        """Take no note."""

    def may_publish(self) -> None:
        """Allow it."""
