"""The state of all ranks becomes a checkpoint folder that is never seen half-written."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preprocess.shards.atomic import fsync, publish, write_text
from simclr.checkpoint.manifest import (
    STATE_NAME,
    CheckpointManifest,
    describe_files,
    folder_name,
    write_manifest,
)
from simclr.checkpoint.retention import prune
from simclr.collectives import barrier
from simclr.world import World

CHECKPOINTS = "checkpoints"
LATEST = "latest"


def save_checkpoint(
    run_dir: Path,
    world: World,
    state: dict[str, Any],
    own: dict[str, Any],
    about: CheckpointManifest,
    keep: int,
) -> Path:
    """Save synchronously; every rank must call it at the same step.

    Each rank writes its ``own`` state with its generators, rank 0 the shared ``state``. Only when
    all files are on the device does rank 0 write the manifest, rename the folder to its name and
    move ``latest``; only then are older checkpoints removed. A kill at any moment leaves the older
    ones as they were.

    Returns:
        The folder ``checkpoints/step-<step>``.
    """
    final = run_dir / CHECKPOINTS / folder_name(about.step)
    temporary = final.with_name(f".saving-{final.name}")
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed attempt
        temporary.mkdir(parents=True)
    barrier()
    _write(temporary / f"rank-{world.rank:04d}.pt", {"own": own, "random": random_state()})
    if world.is_main:
        _write(temporary / STATE_NAME, state)
    barrier()
    if world.is_main:
        write_manifest(temporary, replace(about, files=describe_files(temporary)))
        if final.exists():
            final.rename(final.with_name(f".removing-{final.name}"))
        publish(temporary, final)
        write_text(final.parent / LATEST, final.name + "\n")
        prune(final.parent, keep)
    barrier()
    return final


def random_state() -> dict[str, Any]:
    """Return the state of every generator of this process.

    Nothing in a step draws from them; they are saved so that code added to a run (a dropout in a
    head) resumes as well.
    """
    numpy_state = np.random.get_state(legacy=False)
    if not isinstance(numpy_state, dict):
        raise TypeError("numpy returned a legacy state")
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": {
            "keys": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _write(path: Path, state: dict[str, Any]) -> None:
    torch.save(state, path)
    fsync(path)
