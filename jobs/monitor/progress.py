"""How far a run is: its metrics, checkpoints and heartbeats come in, plain numbers go out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    FOLDER_PATTERN,
    MANIFEST_NAME,
    read_checkpoint_manifest,
    verify,
)
from simclr.metrics import METRICS_NAME, read_metrics

_RECENT = 5  # metric lines whose pace says when the run will end
_PROBES = ("probe/", "knn/")
_SHOWN = ("loss", "learning_rate")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The newest checkpoint of a run.

    Attributes:
        step: optimizer steps done.
        time: when it was finished, seconds since 1970.
        state: ``verified`` (every checksum), ``whole`` (every size), or what is wrong.
        is_whole: nothing is wrong as far as was looked.
    """

    step: int
    time: float
    state: str
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The rank that was silent the longest.

    Attributes:
        rank: its number.
        node: where it runs.
        step: the last one it began.
        time: when it said so, seconds since 1970.
    """

    rank: int
    node: str
    step: int
    time: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        num_steps: of the whole run.
        patches_per_s: over all ranks, in the last interval.
        time_left_s: at the pace of the last intervals.
        metrics: last loss and learning rate, and the last scores of probes with their step.
        checkpoint: newest one.
        slowest: rank that was silent the longest.
    """

    step: int = 0
    num_steps: int = 0
    patches_per_s: float | None = None
    time_left_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    slowest: Heartbeat | None = None


def read_progress(run_dir: Path, since: float = 0.0, *, thorough: bool = False) -> Progress:
    """Read how far a run is.

    Args:
        run_dir: run folder.
        since: when its latest attempt began; heartbeats of earlier ones say nothing.
        thorough: compare the checksums of the newest checkpoint, not its sizes only.
    """
    path = run_dir / METRICS_NAME
    records = read_metrics(path) if path.exists() else []
    last = records[-1] if records else {}
    beats = _heartbeats(run_dir, since)
    return Progress(
        # A heartbeat comes every step, a metric line every interval.
        step=max([last.get("step", 0), *(beat.step for beat in beats)]),
        num_steps=last.get("num_steps", 0),
        patches_per_s=last.get("patches_per_s"),
        time_left_s=_time_left(records),
        metrics=_last_metrics(records),
        checkpoint=newest_checkpoint(run_dir, thorough=thorough),
        slowest=min(beats, key=lambda beat: beat.time, default=None),
    )


def newest_checkpoint(run_dir: Path, *, thorough: bool) -> Checkpoint | None:
    """Return the newest checkpoint that is there, with what can be said of it."""
    for folder in sorted(run_dir.glob(f"{CHECKPOINTS}/{FOLDER_PATTERN}"), reverse=True):
        step = int(folder.name.rpartition("-")[2])
        try:
            time = _written(folder)
            state = _checked(folder, thorough)
        except FileNotFoundError:
            continue  # the run has just removed it: it has a newer one
        except ValueError as error:
            if folder.exists():
                return Checkpoint(step, time, f"damaged: {error}", is_whole=False)
        else:
            return Checkpoint(step, time, state, is_whole=True)
    return None


def _written(folder: Path) -> float:
    manifest = folder / MANIFEST_NAME
    return (manifest if manifest.exists() else folder).stat().st_mtime


def _checked(folder: Path, thorough: bool) -> str:
    if thorough:
        verify(folder)
        return "verified"
    for name, expected in read_checkpoint_manifest(folder).files.items():
        size = (folder / name).stat().st_size
        if size != expected["size_bytes"]:
            raise ValueError(f"{name} has {size} bytes, not {expected['size_bytes']}")
    return "whole"


def _time_left(records: Sequence[dict[str, Any]]) -> float | None:
    recent = records[-_RECENT:]
    steps = recent[-1]["step"] - recent[0]["step"] if recent else 0
    if steps <= 0:
        return None
    pace: float = (recent[-1]["time"] - recent[0]["time"]) / steps
    return pace * float(recent[-1]["num_steps"] - recent[-1]["step"])


def _last_metrics(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    if not records:
        return {}
    shown = {name: records[-1][name] for name in _SHOWN if name in records[-1]}
    for record in reversed(records):
        probes = {key: value for key, value in record.items() if key.startswith(_PROBES)}
        if probes:
            return shown | probes | {"probed_at_step": record["step"]}
    return shown


def _heartbeats(run_dir: Path, since: float) -> list[Heartbeat]:
    beats = []
    for path in run_dir.glob("heartbeats/rank-*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        beat = Heartbeat(
            data.get("rank", 0), data.get("node", ""), data.get("step", 0), float(data["time"])
        )
        # An attempt on fewer ranks leaves the files of the others as they were.
        if beat.time >= since:
            beats.append(beat)
    return beats
