"""Sums over the steps between two metric lines, on the device until the line is written."""

from __future__ import annotations

import time
from typing import Any

import torch

from simclr.collectives import num_ranks, sum_over_ranks
from simclr.monitors.collapse import spread
from simclr.step import Outcome


class Interval:
    """Collects the outcomes of steps; its unfinished sums belong to a checkpoint.

    Were they dropped, the first metric line of a resumed run would be a mean over fewer steps than
    that of an unbroken one.
    """

    def __init__(self, device: torch.device, global_batch_size: int) -> None:
        self._global_batch_size = global_batch_size
        self._loss = torch.zeros((), device=device)
        self._steps = 0
        self._restart_clock(0.0)

    def add(self, outcome: Outcome) -> None:
        """Count one step, without waiting for the device."""
        self._loss += outcome.loss
        self._steps += 1
        self._clocked_steps += 1
        self._projections = outcome.projections

    def close(self, waited_s: float) -> dict[str, Any]:
        """Return the means over all steps and ranks, and begin anew.

        Args:
            waited_s: how long the loader has kept this rank waiting since the run began.
        """
        names, values = zip(*spread(self._projections).items(), strict=True)
        # One reduction and one wait for the device an interval.
        sums = torch.stack([self._loss / self._steps, *values])
        loss, *rest = (sum_over_ranks(sums) / num_ranks()).tolist()
        elapsed_s = time.perf_counter() - self._start
        record = {
            "loss": loss,
            **dict(zip(names, rest, strict=True)),
            "patches_per_s": self._clocked_steps * self._global_batch_size / elapsed_s,
            "data_wait_share": (waited_s - self._waited_s) / elapsed_s,
            "time": time.time(),
        }
        self._loss.zero_()
        self._steps = 0
        self._restart_clock(waited_s)
        return record

    def total_loss(self) -> float:
        """Return the loss since the last line over steps and ranks; waits for the device."""
        return float(sum_over_ranks(self._loss.clone()))

    def state(self) -> dict[str, Any]:
        """Return the unfinished sums of this rank."""
        return {"loss": self._loss.cpu(), "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from saved sums; an empty state begins anew."""
        if state:
            self._loss.copy_(state["loss"])
            self._steps = state["steps"]

    def _restart_clock(self, waited_s: float) -> None:
        self._clocked_steps, self._start, self._waited_s = 0, time.perf_counter(), waited_s
