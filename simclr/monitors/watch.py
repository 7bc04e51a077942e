"""Outcomes of steps come in; metric records, warnings and the best checkpoint's score go out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from simclr.config import TrainConfig
from simclr.metrics import JsonLines, Sink, screen
from simclr.monitors.alarm import Alarm
from simclr.monitors.flops import flop_per_view
from simclr.monitors.interval import Interval
from simclr.monitors.online import open_probe
from simclr.monitors.skips import Skips
from simclr.step import Outcome
from simclr.world import World


class Watch:
    """Watches a run without deciding any weight.

    Attributes:
        best_score: highest headline of the held-out probe so far; -inf before the first.
        headline: name of that score; empty without held-out shards.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        view_size_px: int,
        warmup_steps: int,
        sinks: Sequence[Sink],
    ) -> None:
        self._config = config
        pairs, bands = config.data.global_batch_size, len(config.data.bands)
        flop = 2 * flop_per_view(config.model, bands, view_size_px)
        self._interval = Interval(world.device, pairs, flop)
        self._skips = Skips(world.device, config.max_skipped_steps)
        self._alarm = Alarm(warmup_steps)
        self._probe = open_probe(config, world)
        self._controls: dict[str, float] = {}
        self._metrics = JsonLines(Path(config.run_dir))
        # The caller's first: one of them may know that this attempt has been overtaken, and end it
        # before it writes between its successor's lines.
        self._sinks = [*sinks, self._metrics, screen()] if world.is_main else []
        self.headline = self._probe.headline if self._probe else ""
        self.best_score = -math.inf

    def add(self, outcome: Outcome) -> None:
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
        """Return what a checkpoint keeps once for all ranks."""
        return {
            "alarm": self._alarm.state(),
            "skips": self._skips.state(),
            "controls": self._controls,
            "best_score": self.best_score,
        }

    def own_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this rank."""
        return self._interval.state()

    def load_state(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        """Go on from a saved state; ``own`` is empty if another number of ranks saved it."""
        self._alarm.load_state(state["alarm"])
        self._skips.load_state(state["skips"])
        self._controls, self.best_score = state["controls"], state["best_score"]
        self._interval.load_state(own)

    def _probes_at(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (
            self._probe is not None and step % self._config.monitor.every_steps == 0
        )

    def _scores(self, encoder: nn.Module) -> dict[str, float]:
        """Return the scores of now beside those of encoders that learnt nothing."""
        if self._probe is None:
            return {}
        start = time.perf_counter()
        self._controls = self._controls or self._probe.controls()
        scores = {**self._probe.score(encoder), **self._controls}
        self._interval.leave_out(time.perf_counter() - start)
        return scores
