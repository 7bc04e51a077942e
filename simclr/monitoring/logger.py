"""The metrics logger of the trainer: averages an interval, writes records, and scores checkpoints.

Ranks are averaged in one collective an interval; sinks are called on the main rank alone.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from simclr.config import TrainConfig
from simclr.distributed import DistributedContext, num_ranks, rank, sum_over_ranks
from simclr.monitoring.health import (
    CollapseDetector,
    NonFiniteStepCounter,
    effective_ranks,
    flop_per_view,
    spread,
)
from simclr.monitoring.metrics import JsonLines, Sink, screen

if TYPE_CHECKING:
    from simclr.monitoring.online_probe import OnlineProbe

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step leaves on the device.

    Attributes:
        loss: scalar, of this rank's rows.
        gradient_norm: scalar, of the gradient averaged over ranks.
        skip: float32 scalar, 1 if the weights were left as they were.
        projections: (2B, D) of this rank.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    skip: torch.Tensor
    projections: torch.Tensor


class MetricAccumulator:
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
        # float64: float32 values add up exactly there, in any order and grouping, so that a resumed
        # run writes the same record as an unbroken one
        self._sums = torch.zeros(3, device=device, dtype=torch.float64)
        self._restart_clock(0.0)

    def add(self, outcome: StepOutput) -> None:
        """Count one step, without waiting for the device."""
        values = torch.stack([outcome.loss, outcome.gradient_norm, outcome.skip.new_ones(())])
        self._sums += torch.where(outcome.skip > 0, 0.0, values.double())
        self._clocked_steps += 1
        self._projections = outcome.projections

    def close(self, waited_s: float) -> dict[str, Any]:
        """Return the means over all steps and ranks, and begin anew.

        Args:
            waited_s: how long the loader has kept this rank waiting since the run began.
        """
        names, values = zip(*spread(self._projections).items(), strict=True)
        # One reduction and one wait for the device an interval.
        sums = sum_over_ranks(torch.cat([self._sums, torch.stack(values).double()])) / num_ranks()
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
        """Return the unfinished sums of all ranks; every rank must call it at the same step."""
        return {"sums": sum_over_ranks(self._sums.clone()).cpu(), "ranks": num_ranks()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from saved sums, which rank 0 takes over for all, whatever their number was."""
        self._sums.zero_()
        if rank() == 0:
            self._sums += state["sums"].to(self._device) * (num_ranks() / state["ranks"])

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


class MetricsLogger:
    """Watches a run without deciding any weight.

    Attributes:
        best_score: highest headline of the held-out probe so far; -inf before the first.
        headline: name of that score; empty without held-out shards.
    """

    def __init__(
        self,
        config: TrainConfig,
        context: DistributedContext,
        view_size_px: int,
        warmup_steps: int,
        sinks: Sequence[Sink],
    ) -> None:
        self._config = config
        pairs, bands = config.data.global_batch_size, len(config.data.bands)
        flop = 2 * flop_per_view(config.model, bands, view_size_px)
        self._interval = MetricAccumulator(context.device, pairs, flop)
        self._skips = NonFiniteStepCounter(context.device, config.max_skipped_steps)
        self._alarm = CollapseDetector(warmup_steps)
        self._probe: OnlineProbe | None = None
        if config.monitor.shards:
            # here, since ranks without a probe need no scipy
            from simclr.monitoring.online_probe import OnlineProbe

            self._probe = OnlineProbe(config, context)
        self._controls: dict[str, float] = {}
        self._metrics = JsonLines(Path(config.run_dir))
        # The caller's first: one of them may know that this attempt has been overtaken, and end it
        # before it writes between its successor's lines.
        self._sinks = [*sinks, self._metrics, screen()] if context.is_main else []
        self.headline = self._probe.headline if self._probe else ""
        self.best_score = -math.inf

    def add(self, outcome: StepOutput) -> None:
        """Count one step, without waiting for the device."""
        self._interval.add(outcome)
        self._skips.count(outcome.skip)

    def is_due(self, step: int, num_steps: int) -> bool:
        """True if a record is to be written after a step."""
        return step % self._config.log_every_steps == 0 or self._probes_at(step, num_steps)

    def report(self, place: dict[str, Any], waited_s: float, encoder: nn.Module) -> bool:
        """Write the record of an interval; return whether its probe score is the best so far.

        Args:
            place: where the run stands; ``step`` and ``num_steps`` at least.
            waited_s: how long the loader has kept this rank waiting since the run began.
            encoder: to be probed if that is due.

        Raises:
            ValueError: too many steps were skipped one after another.
        """
        record = {**place, **self._interval.close(waited_s), "skipped_steps": self._skips.total()}
        scores = {}
        if self._probe and self._probes_at(place["step"], place["num_steps"]):
            scores = self._scores(encoder)
        for sink in self._sinks:
            sink.write({**record, **scores})
        self._alarm.watch(record)
        self._skips.end_if_many(place["step"])
        if not scores.get(self.headline, -math.inf) > self.best_score:
            return False
        self.best_score = scores[self.headline]
        return True

    def is_sound(self) -> bool:
        """True unless the latest step was skipped; waits for the device."""
        return self._skips.in_a_row() == 0

    def rewind(self, step: int) -> None:
        """Drop records after a step: the attempt that wrote them did not keep its weights."""
        if self._sinks:
            self._metrics.rewind(step)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; every rank must call it at the same step."""
        return {
            "interval": self._interval.state(),
            "alarm": self._alarm.state(),
            "skips": self._skips.state(),
            "controls": self._controls,
            "best_score": self.best_score,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._alarm.load_state(state["alarm"])
        self._skips.load_state(state["skips"])
        self._controls, self.best_score = state["controls"], state["best_score"]
        self._interval.load_state(state["interval"])

    def _probes_at(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (
            self._probe is not None and step % self._config.monitor.every_steps == 0
        )

    def _scores(self, encoder: nn.Module) -> dict[str, float]:
        """Return the scores of now beside those of untrained baselines."""
        if self._probe is None:
            return {}
        start = time.perf_counter()
        self._controls = self._controls or self._probe.controls()
        scores = {**self._probe.score(encoder), **self._controls}
        self._interval.leave_out(time.perf_counter() - start)
        return scores
