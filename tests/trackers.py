"""Read back what trackers keep in a run folder, without their clients."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

_BLOCK, _HEADER = 32768, 7  # of the log format of LevelDB, in which W&B keeps offline runs


def tensorboard_scalars(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Return step and value of a scalar, in the order in which they were written."""
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def wandb_history(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Return step and value of a metric of the only offline run."""
    found = []
    for record in wandb_records(run_dir):
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if name in row:
                found.append((row["_step"], row[name]))
    return found


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """Yield the records of the only offline run, as its ``wandb sync`` would send them."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (run_dir / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    data, position, parts = path.read_bytes(), _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        if left < _HEADER or kind == 0:
            position += left
            continue
        parts += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def mlflow_rows(run_dir: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query of the store in the run folder."""
    connection = sqlite3.connect(run_dir / "tracking" / "mlflow.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def mlflow_metrics(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Return step and value of a metric of all runs of the store, by step."""
    return mlflow_rows(
        run_dir, f"SELECT step, value FROM metrics WHERE key = '{name}' ORDER BY step, timestamp"
    )
