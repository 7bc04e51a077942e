"""Parts of a piece of work come in; when this returns, all are done, each by a single thread.

Torch would share out every small operation among all threads and wait for the last of them each
time. Parts of the work shared out instead wait once, and each is computed in the same order of sums
whatever the number of threads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Part = TypeVar("_Part")


def share_out(work: Callable[[_Part], None], parts: Iterable[_Part]) -> None:
    """Do the work on every part, on as many threads as torch may use, without gradients."""
    num = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def in_mode(part: _Part) -> None:
        """Work in the modes of the caller."""
        # Modes are a thread's own; outside of inference nothing made in it may be written to.
        with torch.inference_mode(inference), torch.no_grad():
            work(part)

    try:
        # An exception in a thread is raised here.
        list(_pool(num, os.getpid()).map(in_mode, parts))
    finally:
        # A thread that starts later takes the number that was set last, by any thread.
        torch.set_num_threads(num)


@functools.cache
def _pool(num: int, _: int) -> ThreadPoolExecutor:
    """Return the threads of this process; after a fork the parent's would be missing."""
    return ThreadPoolExecutor(num, "views", torch.set_num_threads, (1,))


def is_free(device: torch.device) -> bool:
    """True where to ask for a value, or to start many small operations, costs next to nothing."""
    return device.type == "cpu"


def listed(flags: torch.Tensor) -> torch.Tensor | None:
    """Return the numbers of the views that are flagged: (N,) bool to (M,) int64.

    A CPU spares the others the work. A GPU would have to be waited for to count them, so there
    is no list on one, and everything is computed for all views: None.
    """
    return flags.nonzero().squeeze(1) if is_free(flags.device) else None
