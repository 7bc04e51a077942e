"""Metric records: the trainer's logger, and its sinks: metrics.jsonl, the log, a progress bar.

Commands on a login node read them, so torch is imported only when a logger is created.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from preprocess.shards.atomic_io import append_json_line, write_text
from simclr.config import MonitorConfig, TrainConfig, from_plain

if TYPE_CHECKING:
    from torch import nn

    from simclr.distributed import DistributedContext
    from simclr.monitoring.health import StepOutput
    from simclr.monitoring.online_probe import OnlineProbe

METRICS_NAME = "metrics.jsonl"

_log = logging.getLogger("simclr")


class Sink(Protocol):
    """A receiver of metric records."""

    def write(self, record: dict[str, Any]) -> None:
        """Write one record; every value is a number or a short text."""


class JsonLines:
    """Appends records to ``metrics.jsonl`` in a run folder."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / METRICS_NAME

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop records after a step, whose weights were not saved; return the others."""
        if not self.path.exists():
            return []
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        return kept

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; numbers that are not finite become null.

        A failure to write only logs a warning: it must not end the training.
        """
        # Python would write NaN, which is not valid JSON.
        strict = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        try:
            append_json_line(self.path, strict)
        except OSError as error:
            _log.warning("step %s is missing in %s: %s", record["step"], self.path, error)


class LogLines:
    """Logs the main numbers of a record in one line."""

    def write(self, record: dict[str, Any]) -> None:
        """Log the record's step, loss, learning rate and patches per second."""
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
    """Return a progress bar for a terminal, log lines otherwise."""
    return ProgressBar() if sys.stderr.isatty() else LogLines()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metric records; lines truncated by a kill or a full disk are skipped with a warning."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            _log.warning("%s holds an incomplete line: %.40s", path, line)
    return records


class MetricsLogger:
    """Monitors a run without affecting its weights; sinks are called only on the main rank."""

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
            # imported here, since runs without a probe need no scipy
            from simclr.monitoring.online_probe import OnlineProbe

            self._probe = OnlineProbe(config, context)
        self._controls: dict[str, float] = {}
        self._metrics = JsonLines(Path(config.run_dir))
        # The caller's sinks first: one of them may detect that another attempt has taken over, and
        # end this one before it writes between its successor's lines.
        self._sinks = [*sinks, self._metrics, screen()] if context.is_main else []
        self.headline = self._probe.headline if self._probe else ""
        self.best_score = -math.inf  # highest headline of the held-out probe so far

    def add(self, outcome: StepOutput) -> None:
        """Count one step, without waiting for the device."""
        self._interval.add(outcome)
        self._skips.count(outcome.skip)

    def is_due(self, step: int, num_steps: int) -> bool:
        """Return whether a record is due after a step."""
        return step % self._config.log_every_steps == 0 or self._probes_at(step, num_steps)

    def report(self, place: dict[str, Any], waited_s: float, encoder: nn.Module) -> bool:
        """Write the record of an interval; return whether its probe score is the best so far.

        ``place`` is the progress of the run, with at least ``step`` and ``num_steps``. The encoder
        is probed if due. ValueError if too many consecutive steps were skipped.
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
        if not scores.get(self.headline, -math.inf) > self.best_score or not self.is_sound():
            return False
        self.best_score = scores[self.headline]
        return True

    def is_sound(self) -> bool:
        """Return whether the latest step was not skipped; waits for the device."""
        return self._skips.in_a_row() == 0

    def rewind(self, step: int) -> bool:
        """Drop records after a step; return whether it is the best so far; main rank only."""
        records = self._metrics.rewind(step)
        best = [one["step"] for one in records if one.get(self.headline) == self.best_score]
        return best[:1] == [step]  # a later step with the same score is no better

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint; every rank must call it at the same step."""
        return {
            "interval": self._interval.state(),
            "alarm": self._alarm.state(),
            "skips": self._skips.state(),
            "controls": self._controls,
            "best_score": self.best_score,
        }

    def load_state(self, state: dict[str, Any], monitor: dict[str, Any]) -> None:
        """Restore a saved state; ``monitor`` are the settings of the probe that it comes from."""
        self._alarm.load_state(state["alarm"])
        self._skips.load_state(state["skips"])
        own = self._config.monitor  # scores of another task or other samples do not compare
        if replace(from_plain(MonitorConfig, monitor), every_steps=own.every_steps) == own:
            self._controls, self.best_score = state["controls"], state["best_score"]
        self._interval.load_state(state["interval"])

    def _probes_at(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (
            self._probe is not None and step % self._config.monitor.every_steps == 0
        )
