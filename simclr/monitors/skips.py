"""Flags of steps without a finite gradient come in, one a step; counts and an end go out."""

from __future__ import annotations

from typing import Any

import torch


class Skips:
    """Counts skipped steps on the device, so that no step waits for it.

    The flag comes from the averaged gradient, which is the same on all ranks: they agree without
    another collective.

    Args:
        device: where the flags live.
        limit: skipped steps in a row that end the run.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self._limit = limit
        # in all, in a row up to now, most in a row since the last look
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def count(self, skip: torch.Tensor) -> None:
        """Count one step; ``skip`` is a float scalar, 1 if its update was left out."""
        flag = skip.long()
        total, streak, worst = self._counts.unbind(0)
        streak.add_(1).mul_(flag)
        total.add_(flag)
        torch.maximum(worst, streak, out=worst)

    def total(self) -> int:
        """Return the number of skipped steps so far; waits for the device."""
        return int(self._counts[0])

    def end_if_many(self, step: int) -> None:
        """Look whether too many followed each other since the last look; waits for the device.

        Raises:
            ValueError: they did.
        """
        worst = int(self._counts[2])
        self._counts[2] = self._counts[1]
        if worst >= self._limit:
            raise ValueError(
                f"no finite gradient in {worst} steps one after another, up to step {step}; lower "
                "optim.learning_rate or add optim.warmup_epochs, and start in another run_dir: "
                "what was saved before is whole"
            )

    def in_a_row(self) -> int:
        """Return how many of the latest steps were skipped; waits for the device."""
        return int(self._counts[1])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"counts": self._counts.cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._counts.copy_(state["counts"])
