"""Which views something is done to: flags come in, numbers go out where that costs nothing."""

from __future__ import annotations

import torch


def is_free(device: torch.device) -> bool:
    """True where to ask for a value, or to start many small operations, costs next to nothing."""
    return device.type == "cpu"


def listed(flags: torch.Tensor) -> torch.Tensor | None:
    """Return the numbers of the views that are flagged: (N,) bool to (M,) int64.

    A CPU spares the others the work. A GPU would have to be waited for to count them, so there
    is no list on one, and everything is computed for all views: None.
    """
    return flags.nonzero().squeeze(1) if is_free(flags.device) else None
