"""Work on a list comes in, is dealt to all ranks, and comes back whole, in order, on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from simclr.world import World

# Ranks wait for the slowest of their trials, not for a step: a day.
TIMEOUT_S = 24 * 3600

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def dealt(items: Sequence[_Item], work: Callable[[_Item], _Result], world: World) -> list[_Result]:
    """Return ``work(item)`` of every item; each rank does every ``size``-th of them."""
    own = [work(item) for item in items[world.rank :: world.size]]
    if world.size == 1:
        return own
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, own)
    return [parts[number % world.size][number // world.size] for number in range(len(items))]


def meet(world: World) -> None:
    """Wait until every rank is here."""
    if world.size > 1:
        world.agree(0)
