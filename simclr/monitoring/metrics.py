"""Metric records and where they go: metrics.jsonl, the log, a progress bar.

Commands on a login node read them, so that torch is not imported here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tqdm import tqdm

from preprocess.shards.atomic_io import write_text

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
                if file.tell() and not _ends_a_line(file):
                    line = "\n" + line  # a full disk cut the one before
                file.write(line.encode())
        except OSError as error:
            _log.warning("step %s is missing in %s: %s", record["step"], self.path, error)


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


class LogLines:
    """Says the main numbers of a record in one log line."""

    def write(self, record: dict[str, Any]) -> None:
        """Log the record's step, loss, learning rate and rate."""
        _log.info(
            "step %d of %d  loss %.4f  learning rate %.2e  %.1f patches/s",
            record["step"],
            record["num_steps"],
            record["loss"],
            record["learning_rate"],
            record["patches_per_s"],
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
