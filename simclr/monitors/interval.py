"""Sums over the steps between two metric lines, on the device until the line is written."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import torch

from simclr.collectives import num_ranks, sum_over_ranks
from simclr.monitors.collapse import effective_ranks, spread
from simclr.step import Outcome

_GIB = 2**30


class Interval:
    """Collects the outcomes of steps; its unfinished sums belong to a checkpoint.

    Were they dropped, the first metric line of a resumed run would be a mean over fewer steps than
    that of an unbroken one.

    Args:
        device: where the sums live.
        global_batch_size: pairs a step.
        flop_per_pair: of forward and backward, for the achieved rate.
    """

    def __init__(self, device: torch.device, global_batch_size: int, flop_per_pair: float) -> None:
        self._device = device
        self._global_batch_size, self._flop_per_pair = global_batch_size, flop_per_pair
        # loss, gradient norm and number of the steps that were not skipped
        self._sums = torch.zeros(3, device=device)
        self._restart_clock(0.0)

    def add(self, outcome: Outcome) -> None:
        """Count one step, without waiting for the device."""
        values = torch.stack([outcome.loss, outcome.gradient_norm, outcome.skip.new_ones(())])
        self._sums += torch.where(outcome.skip > 0, 0.0, values)
        self._clocked_steps += 1
        self._projections = outcome.projections

    def close(self, waited_s: float) -> dict[str, Any]:
        """Return the means over all steps and ranks, and begin anew.

        Args:
            waited_s: how long the loader has kept this rank waiting since the run began.
        """
        names, values = zip(*spread(self._projections).items(), strict=True)
        # One reduction and one wait for the device an interval.
        sums = sum_over_ranks(torch.cat([self._sums, torch.stack(values)])) / num_ranks()
        loss, norm, steps, *rest = sums.tolist()
        record = {
            "loss": loss / steps if steps else math.nan,
            "gradient_norm": norm / steps if steps else math.nan,
            **dict(zip(names, rest, strict=True)),
            **effective_ranks(self._projections),
            **self._speed(waited_s),
        }
        self._sums.zero_()
        self._restart_clock(waited_s)
        return record

    def leave_out(self, seconds: float) -> None:
        """Take time that went into something else than training out of the rates."""
        self._start += seconds

    def state(self) -> dict[str, Any]:
        """Return the unfinished sums of this rank."""
        return {"sums": self._sums.cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from saved sums; an empty state begins anew."""
        if state:
            self._sums.copy_(state["sums"])

    def _speed(self, waited_s: float) -> dict[str, float]:
        elapsed_s = time.perf_counter() - self._start
        pairs_per_s = self._clocked_steps * self._global_batch_size / elapsed_s
        return {
            "patches_per_s": pairs_per_s,
            "tflop_per_s": pairs_per_s * self._flop_per_pair / 1e12,
            "data_wait_share": (waited_s - self._waited_s) / elapsed_s,
            "peak_memory_gib": peak_memory_gib(self._device),
            "time": time.time(),
        }

    def _restart_clock(self, waited_s: float) -> None:
        self._clocked_steps, self._start, self._waited_s = 0, time.perf_counter(), waited_s


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far: by torch on a GPU, by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB  # Linux counts KiB
