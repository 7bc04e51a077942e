"""What a run tells whoever started it, and asks: the steps it has done, and leave to publish."""

from __future__ import annotations

from typing import Protocol


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
