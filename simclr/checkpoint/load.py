"""The newest valid checkpoint of a run: rank 0 chooses, all ranks load the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    FOLDER_PATTERN,
    STATE_NAME,
    read_checkpoint_manifest,
    verify,
)
from simclr.checkpoint.retention import sweep
from simclr.checkpoint.save import set_aside as rename_bad
from simclr.checkpoint.snapshot import restore_random_state
from simclr.collectives import from_main_rank
from simclr.world import World

_log = logging.getLogger("simclr")


def newest_valid(run_dir: Path, *, set_aside: bool = False) -> Path | None:
    """Return the newest checkpoint whose every byte matches its manifest, or None.

    Args:
        run_dir: run folder.
        set_aside: rename damaged checkpoints to ``bad-...``; only the run itself may do so.

    Raises:
        ValueError: there are checkpoints, and none is valid. Starting over would hide a loss.
    """
    # By name, which sorts by step; `latest` is for people, and a kill may leave it behind.
    folders = sorted((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN), reverse=True)
    for folder in folders:
        try:
            verify(folder)
        except ValueError as error:
            _log.warning("checkpoint passed over: %s", error)
            if set_aside:
                rename_bad(folder)
        else:
            return folder
    if folders:
        raise ValueError(
            f"none of the {len(folders)} checkpoints in {run_dir / CHECKPOINTS} is valid; "
            "remove the folder to start over, or restore one"
        )
    return None


def agreed_checkpoint(run_dir: Path, world: World) -> Path | None:
    """Return the checkpoint that rank 0 found, on every rank.

    Raises:
        ValueError: there are checkpoints and none is valid, or the folder cannot be changed.
    """
    # One looks and tells: on a network file system ranks may see different folders for a while,
    # and would go on from different steps.
    choice = ""
    if world.is_main:
        try:
            sweep(run_dir)
            found = newest_valid(run_dir, set_aside=True)
            choice = str(found) if found else ""
        except (OSError, ValueError) as error:
            choice = f"!{error}"  # the other ranks wait for an answer, whatever it is
    choice = from_main_rank(choice)
    if choice.startswith("!"):
        raise ValueError(choice[1:])
    return Path(choice) if choice else None


def load_state(folder: Path, device: torch.device) -> dict[str, Any]:
    """Load the state that all ranks share; only tensors and plain types are unpickled."""
    state: dict[str, Any] = torch.load(folder / STATE_NAME, map_location=device, weights_only=True)
    return state


def restore_rank(folder: Path, world: World) -> dict[str, Any]:
    """Restore this rank's generators and return its own state.

    A checkpoint saved by another number of ranks has none that would fit: the state is empty.
    """
    if read_checkpoint_manifest(folder).world_size != world.size:
        _log.info("%s was saved by another number of ranks", folder.name)
        return {}
    path = folder / f"rank-{world.rank:04d}.pt"
    # On the CPU, where states of generators belong, also those of a GPU.
    state = torch.load(path, map_location="cpu", weights_only=True)
    restore_random_state(state["random"])
    own: dict[str, Any] = state["own"]
    return own
