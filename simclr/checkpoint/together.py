"""A step of saving that all ranks take or none: an action comes in, anyone's trouble goes out."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from simclr.world import World


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, on whichever rank; older ones are as they were."""


class Together:
    """The ranks of a run while they save.

    They speak through a group of their own: a save beside the training loop must not meet the
    loop's collectives, which follow another order on every rank.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        # the stubs of torch know a second type, of ranks that stay outside; none does here
        self._group: Any = dist.new_group(backend="gloo") if world.size > 1 else None

    def do(self, action: Callable[[], object]) -> None:
        """Run an action on every rank and wait for all.

        Raises:
            CheckpointError: it failed somewhere; raised on all ranks, with the words of the first.
        """
        failure = None
        try:
            action()
        except Exception as error:  # the peers would wait for ever; raised below
            failure = error
        troubles = [text for text in self._gathered(self._in_words(failure)) if text]
        if troubles:
            raise CheckpointError(troubles[0]) from failure

    def do_on_main(self, action: Callable[[], object]) -> None:
        """Run an action on the main rank only, and let all ranks wait for it."""
        self.do(action if self.world.is_main else _nothing)

    def told_by_main(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        return self._gathered(text)[0]

    def _gathered(self, text: str) -> list[str]:
        if self._group is None:
            return [text]
        texts = [""] * self.world.size
        dist.all_gather_object(texts, text, group=self._group)
        return texts

    def _in_words(self, failure: Exception | None) -> str:
        if failure is None:
            return ""
        return f"rank {self.world.rank} on {socket.gethostname()}: {failure}"


def _nothing() -> None:
    """Take part in a step without anything to do."""
