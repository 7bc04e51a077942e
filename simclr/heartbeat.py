"""A small file per rank that says: I was here, at this step, at this time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from simclr.world import World


def beat(run_dir: Path, world: World, step: int) -> None:
    """Replace this rank's heartbeat file.

    Not flushed to the device: a heartbeat that a crash of the node loses says what is true.
    """
    path = run_dir / "heartbeats" / f"rank-{world.rank:04d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"rank": world.rank, "step": step, "time": time.time(), "node": world.node}
    record["pid"] = os.getpid()
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.replace(path)
