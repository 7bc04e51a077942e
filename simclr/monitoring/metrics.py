"""Metric records: the trainer's logger, and where they go: metrics.jsonl, the log, a progress bar.

Commands on a login node read them, so that torch is imported only where a logger is made.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from preprocess.shards.atomic_io import write_text
from simclr.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from simclr.distributed import DistributedContext
    from simclr.monitoring.health import StepOutput
    from simclr.monitoring.online_probe import OnlineProbe

METRICS_NAME = "metrics.jsonl"

_log = logging.getLogger("simclr")


class Sink(Protocol):
    """Anything that takes metric records."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record; every value is a number or a short text."""


class JsonLines:
    """Appends records to ``metrics.jsonl`` of a run folder."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS_NAME

    def rewind(self, step: int) -> None:
        """Drop records after a step: the attempt that wrote them did not keep its weights."""
        if self.path.exists():
            kept = [record for record in read_metrics(self.path) if record["step"] <= step]
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; a number that does not exist becomes null.

        A line that cannot be written is a warning: no training ends for it.
        """
        # Python would write NaN, which is no JSON.
        strict = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        line = json.dumps(strict, allow_nan=False) + "\n"
        try:
            with self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = "\n" + line  # a full disk cut the one before
                file.write(line.encode())
        except OSError as error:
            _log.warning("step %s is missing in %s: %s", record["step"], self.path, error)


class LogLines:
    """Says the main numbers of a record in one log line."""

    def write(self, record: dict[str, Any]) -> None:
        """Log the record's step, loss, learning rate and rate."""
        _log.info(
            "step %(step)d of %(num_steps)d  loss %(loss).4f  "
            "learning rate %(learning_rate).2e  %(patches_per_s).1f patches/s",
            record,
        )


class ProgressBar:
    """Shows the steps of a run on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def write(self, record: dict[str, Any]) -> None:
        """Move the bar to the record's step."""
        if self._bar is None:
            step, total = record["step"], record["num_steps"]
            self._bar = tqdm(total=total, initial=step, desc="pretrain", unit="step")
        self._bar.update(record["step"] - self._bar.n)
        self._bar.set_postfix(loss=f"{record['loss']:.3f}")
        if record["step"] >= record["num_steps"]:
            self._bar.close()


def screen() -> Sink:
    """Return a bar for a terminal, lines for a log file."""
    return ProgressBar() if sys.stderr.isatty() else LogLines()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metric records; a line cut short by a kill or a full disk is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            _log.warning("%s holds an incomplete line: %.40s", path, line)
    return records


class MetricsLogger:
    """Watches a run without deciding any weight; its sinks are called on the main rank alone."""

    def __init__(
        self,
        config: TrainConfig,
        context: DistributedContext,
        view_size_px: int,
        warmup_steps: int,
        sinks: Sequence[Sink],
    ) -> None:
        from simclr.monitoring import health

        self._config = config
        pairs, bands = config.data.global_batch_size, len(config.data.bands)
        flop = 2 * health.flop_per_view(config.model, bands, view_size_px)
        self._interval = health.MetricAccumulator(context.device, pairs, flop)
        self._skips = health.NonFiniteStepCounter(context.device, config.max_skipped_steps)
        self._alarm = health.CollapseDetector(warmup_steps)
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
        self.best_score = -math.inf  # highest headline of the held-out probe so far

    def add(self, outcome: StepOutput) -> None:
        """Count one step, without waiting for the device."""
        self._interval.add(outcome)
        self._skips.count(outcome.skip)

    def is_due(self, step: int, num_steps: int) -> bool:
        """True if a record is to be written after a step."""
        return step % self._config.log_every_steps == 0 or self._probes_at(step, num_steps)

    def report(self, place: dict[str, Any], waited_s: float, encoder: nn.Module) -> bool:
        """Write the record of an interval; return whether its probe score is the best so far.

        ``place`` says where the run stands, ``step`` and ``num_steps`` at least; the encoder is
        probed if that is due. ValueError if too many steps were skipped one after another.
        """
        record = {**place, **self._interval.close(waited_s), "skipped_steps": self._skips.total()}
        scores = {}
        if self._probe and self._probes_at(place["step"], place["num_steps"]):
            start = time.perf_counter()
            self._controls = self._controls or self._probe.controls()  # untrained baselines
            scores = {**self._probe.score(encoder), **self._controls}
            self._interval.leave_out(time.perf_counter() - start)
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
        """Drop records after a step; main rank only."""
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
