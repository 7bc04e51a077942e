"""Metric records come in; a warning in words goes out when a run has ceased to learn."""

from __future__ import annotations

import logging
from typing import Any

COLLAPSED_DEVIATION = 0.2
COLLAPSED_COSINE = 0.9
STUCK_DISTANCE = 0.02
STUCK_STEPS = 200

_log = logging.getLogger("simclr")


class Alarm:
    """Says once that something is wrong, and again only after it had been well in between.

    Args:
        warmup_steps: steps of which a loss at chance level proves nothing.
    """

    def __init__(self, warmup_steps: int) -> None:
        self._warmup_steps = warmup_steps
        self._at_chance_since: int | None = None
        self._rung = False

    def watch(self, record: dict[str, Any]) -> None:
        """Take a record and warn if need be."""
        words = collapse_in_words(record) or self._stuck_in_words(record)
        if words and not self._rung:
            _log.warning(words)
        self._rung = bool(words)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: a run stuck before a restart is stuck after it."""
        return {"at_chance_since": self._at_chance_since, "rung": self._rung}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._at_chance_since, self._rung = state["at_chance_since"], state["rung"]

    def _stuck_in_words(self, record: dict[str, Any]) -> str:
        step, distance = record["step"], abs(record["loss"] - record["chance_level"])
        # A loss that does not exist (all steps skipped) is no loss at chance level.
        if step <= self._warmup_steps or not distance < STUCK_DISTANCE:
            self._at_chance_since = None
            return ""
        if self._at_chance_since is None:
            self._at_chance_since = step
        if step - self._at_chance_since < STUCK_STEPS:
            return ""
        return (
            f"loss is stuck at {record['chance_level']:.3f}, the logarithm of the number of "
            f"candidates, from step {self._at_chance_since} to step {step}: nothing is learnt; "
            "change optim.learning_rate, or let augment.preset change less"
        )


def collapse_in_words(record: dict[str, Any]) -> str:
    """Return a warning if the numbers of an interval show a collapse, else an empty text."""
    deviation, cosine = record["deviation"], record["mean_cosine"]
    if deviation >= COLLAPSED_DEVIATION or cosine <= COLLAPSED_COSINE:
        return ""
    return (
        f"projections have collapsed at step {record['step']:.0f}: deviation {deviation:.3f} "
        f"(1 is healthy), mean cosine {cosine:.3f} (0 is healthy); lower optim.learning_rate or "
        "add warm-up"
    )
