"""Measurements of the metrics logger: interval means, speed, collapse, non-finite steps.

Counters stay on the device, so that counting a step never waits for it.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from simclr.config import BatchNormGroup, ModelConfig
from simclr.distributed import num_ranks, rank, sum_over_ranks
from simclr.model.simclr import SimCLR

COLLAPSED_DEVIATION = 0.2
COLLAPSED_COSINE = 0.9
STUCK_DISTANCE = 0.02
STUCK_STEPS = 200
_GIB = 2**30

_log = logging.getLogger("simclr")


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The results of a step, on the device."""

    loss: torch.Tensor  # scalar, of this rank's rows
    gradient_norm: torch.Tensor  # scalar, of the gradient averaged over ranks
    skip: torch.Tensor  # float32 scalar, 1 if the update was skipped
    projections: torch.Tensor  # (2B, D) of this rank


class MetricAccumulator:
    """Accumulates the results of steps; its unfinished sums are part of a checkpoint.

    Without them, the first metrics record of a resumed run would average fewer steps than that of
    an uninterrupted one. ``global_batch_size`` is in pairs per step; ``flop_per_pair`` includes
    forward and backward.
    """

    def __init__(self, device: torch.device, global_batch_size: int, flop_per_pair: float) -> None:
        self._device = device
        self._global_batch_size, self._flop_per_pair = global_batch_size, flop_per_pair
        # sums of loss and gradient norm over steps that were not skipped, and their number
        # float64, in which sums of float32 values are exact in any order, so that a resumed run
        # writes the same record as an uninterrupted one
        self._sums = torch.zeros(3, device=device, dtype=torch.float64)
        self._restart_clock(0.0)

    def add(self, outcome: StepOutput) -> None:
        """Count one step, without waiting for the device."""
        values = torch.stack([outcome.loss, outcome.gradient_norm, outcome.skip.new_ones(())])
        self._sums += torch.where(outcome.skip > 0, 0.0, values.double())
        self._clocked_steps += 1
        self._projections = outcome.projections

    def close(self, waited_s: float) -> dict[str, Any]:
        """Return the means over all steps and ranks, and start a new interval.

        ``waited_s`` is the total time that this rank has waited for the loader since its start.
        """
        names, values = zip(*spread(self._projections).items(), strict=True)
        # A single reduction and host sync for all means of an interval.
        sums = sum_over_ranks(torch.cat([self._sums, torch.stack(values).double()])) / num_ranks()
        loss, norm, steps, *rest = sums.tolist()
        effective = effective_ranks(self._projections)
        elapsed_s = time.perf_counter() - self._start
        pairs_per_s = self._clocked_steps * self._global_batch_size / elapsed_s
        record = {
            "loss": loss / steps if steps else math.nan,
            "gradient_norm": norm / steps if steps else math.nan,
            **dict(zip(names, rest, strict=True)),
            **effective,
            "patches_per_s": pairs_per_s,
            "tflop_per_s": pairs_per_s * self._flop_per_pair / 1e12,
            "data_wait_share": (waited_s - self._waited_s) / elapsed_s,
            "peak_memory_gib": peak_memory_gib(self._device),
            "time": time.time(),
        }
        self._sums.zero_()
        self._restart_clock(waited_s)
        return record

    def leave_out(self, seconds: float) -> None:
        """Exclude time spent on anything other than training from the rates."""
        self._start += seconds

    def state(self) -> dict[str, Any]:
        """Return the unfinished sums of all ranks; every rank must call it at the same step."""
        return {"sums": sum_over_ranks(self._sums.clone()).cpu(), "ranks": num_ranks()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore saved sums, all on rank 0, for any previous number of ranks."""
        self._sums.zero_()
        if rank() == 0:
            self._sums += state["sums"].to(self._device) * (num_ranks() / state["ranks"])

    def _restart_clock(self, waited_s: float) -> None:
        self._clocked_steps, self._start, self._waited_s = 0, time.perf_counter(), waited_s


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory so far: of torch on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB  # Linux counts KiB


class CollapseDetector:
    """Warns once about a collapse or a stuck loss, and again only after a recovery."""

    def __init__(self, warmup_steps: int) -> None:
        self._warmup_steps = warmup_steps  # during which a loss at chance level proves nothing
        self._at_chance_since: int | None = None
        self._warned = False

    def watch(self, record: dict[str, Any]) -> None:
        """Check a record and warn if necessary."""
        words = collapse_in_words(record) or self._stuck_in_words(record)
        if words and not self._warned:
            _log.warning(words)
        self._warned = bool(words)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: a run stuck before a restart is stuck after it."""
        # checkpoints of this format use the key "rung", not "warned"
        return {"at_chance_since": self._at_chance_since, "rung": self._warned}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self._at_chance_since, self._warned = state["at_chance_since"], state["rung"]

    def _stuck_in_words(self, record: dict[str, Any]) -> str:
        step, distance = record["step"], abs(record["loss"] - record["chance_level"])
        # An undefined loss (all steps skipped) is not at chance level.
        if step <= self._warmup_steps or not distance < STUCK_DISTANCE:
            self._at_chance_since = None
            return ""
        if self._at_chance_since is None:
            self._at_chance_since = step
        if step - self._at_chance_since < STUCK_STEPS:
            return ""
        return (
            f"loss is stuck at {record['chance_level']:.3f}, the logarithm of the number of "
            f"candidates, from step {self._at_chance_since} to step {step}: the encoder "
            "is not learning; change optim.learning_rate, or let augment.preset change less"
        )


def collapse_in_words(record: dict[str, Any]) -> str:
    """Return a warning if the record of an interval shows a collapse, else an empty string."""
    deviation, cosine = record["deviation"], record["mean_cosine"]
    if not (deviation < COLLAPSED_DEVIATION and cosine > COLLAPSED_COSINE):
        return ""  # also if they are undefined, after a skipped step
    return (
        f"projections have collapsed at step {record['step']:.0f}: deviation {deviation:.3f} "
        f"(1 is healthy), mean cosine {cosine:.3f} (0 is healthy); lower optim.learning_rate or "
        "add warm-up"
    )


class NonFiniteStepCounter:
    """Counts skipped steps on the device; ``limit`` consecutive ones end the run.

    The flag is computed from the averaged gradient, which is the same on all ranks, so that they
    agree without another collective.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self._limit = limit
        # total, current streak, longest streak since the last check
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def count(self, skip: torch.Tensor) -> None:
        """Count one step; ``skip`` is a float scalar, 1 if its update was skipped."""
        flag = skip.long()
        total, streak, worst = self._counts.unbind(0)
        streak.add_(1).mul_(flag)
        total.add_(flag)
        torch.maximum(worst, streak, out=worst)

    def total(self) -> int:
        """Return the number of skipped steps so far; waits for the device."""
        return int(self._counts[0])

    def end_if_many(self, step: int) -> None:
        """Raise ValueError after too many consecutive ones since the last check; syncs the host."""
        worst = int(self._counts[2])
        self._counts[2] = self._counts[1]
        if worst >= self._limit:
            raise ValueError(
                f"no finite gradient in {worst} steps one after another, up to step {step}; lower "
                "optim.learning_rate or add optim.warmup_epochs, and start in another run_dir: "
                "earlier checkpoints are intact"
            )

    def in_a_row(self) -> int:
        """Return the number of skipped steps in a row up to now; waits for the device."""
        return int(self._counts[1])

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"counts": self._counts.cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self._counts.copy_(state["counts"])


@torch.no_grad()
def spread(projections: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return metrics of the spread of one rank's rows, as scalars on the device.

    deviation: mean over dimensions of the standard deviation of unit projections, times sqrt(D);
    1 for evenly spread directions, 0 if all are equal. mean_cosine: over pairs of distinct rows;
    about 0, or 1 if all are equal. alignment and uniformity: Wang and Isola 2020 (arXiv
    2005.10242), eq. 1 with alpha 2, eq. 2 with t 2; evenly spread: uniformity about -4 + 8 / D.
    """
    unit = F.normalize(projections.float(), dim=1)
    num, width = unit.shape
    first, second = unit.chunk(2)
    total = unit.sum(0)
    # |a - b|^2 = 2 - 2 a.b for unit rows; logsumexp, since exp(-8) summed in float32 loses digits
    logits = (4 * (unit @ unit.T) - 4).fill_diagonal_(-math.inf)
    return {
        "deviation": unit.std(0).mean() * math.sqrt(width),
        "mean_cosine": (total @ total - num) / (num * (num - 1)),
        "alignment": (first - second).square().sum(1).mean(),
        "uniformity": torch.logsumexp(logits.flatten(), 0) - math.log(num * (num - 1)),
    }


def effective_ranks(rows: torch.Tensor) -> dict[str, float]:
    """Return RankMe of all ranks' rows (N, D), uncentred and centred; waits for the device.

    RankMe (Garrido et al. 2023, arXiv 2210.02885, eq. 1) is the exponential of the entropy of the
    singular values, between 1 and min(N, D). An offset common to all rows hides their spread in the
    uncentred number, hence the centred one. Rows are scaled to unit length.
    """
    return ranks_of_moments(sum_over_ranks(moments(rows)))


@torch.no_grad()
def moments(rows: torch.Tensor) -> torch.Tensor:
    """Return products, sums and count of unit rows (N, D) as one (D + 1, D + 1) float64 matrix."""
    # float64: squaring halves the number of digits, and small singular values matter here
    unit = F.normalize(rows.double(), dim=1)
    extended = torch.cat([unit, unit.new_ones(len(unit), 1)], dim=1)
    return extended.T @ extended


def ranks_of_moments(table: torch.Tensor) -> dict[str, float]:
    """Return RankMe from ``moments``, summed over ranks or batches."""
    table = table.cpu()
    products, total, num = table[:-1, :-1], table[-1, :-1], table[-1, -1]
    return {
        "rank_me": _rank_me(products),
        "rank_me_centred": _rank_me(products - torch.outer(total, total) / num),
    }


def _rank_me(products: torch.Tensor) -> float:
    if not products.isfinite().all():
        return math.nan  # from a skipped step; the solver would raise
    # Rounding can turn zero eigenvalues negative.
    singular = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(products.dtype).tiny)
    return math.exp(-float((share * torch.log(share + 1e-7)).sum()))


def flop_per_view(config: ModelConfig, num_bands: int, view_size_px: int) -> float:
    """Return the number of floating-point operations of forward and backward for one view.

    They are counted on the meta device, without memory or arithmetic. The recomputation of
    activation checkpointing is not counted: it is no progress.
    """
    plain = replace(config, batchnorm=BatchNormGroup.none, activation_checkpointing=False)
    with torch.device("meta"):
        network = SimCLR(plain, num_bands)
        two_views = torch.empty(2, num_bands, view_size_px, view_size_px)
    with FlopCounterMode(display=False) as counter:
        network(two_views)[1].sum().backward()
    return float(counter.get_total_flops()) / 2
