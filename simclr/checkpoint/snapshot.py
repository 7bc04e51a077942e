"""The state of a rank at a step boundary, and back: tensors, plain types and generators."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from simclr.checkpoint.manifest import CheckpointManifest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one rank knows at a step boundary.

    Attributes:
        shared: equal on all ranks; the main one writes it.
        own: this rank's alone, with its generators.
        about: origin of the checkpoint, without its files yet.
    """

    shared: dict[str, Any]
    own: dict[str, Any]
    about: CheckpointManifest


def take(
    shared: dict[str, Any], own: dict[str, Any], about: CheckpointManifest, *, copy: bool
) -> Snapshot:
    """Return the state of this moment.

    Args:
        shared: tensors and plain types, nested in dictionaries and lists.
        own: this rank's, likewise.
        about: origin of the checkpoint.
        copy: take tensors to host memory, apart from those that the next step changes.
    """
    snapshot = Snapshot(shared, {"own": own, "random": random_state()}, about)
    if not copy:
        return snapshot
    return Snapshot(copied(snapshot.shared), copied(snapshot.own), about)


def copied(tree: Any) -> Any:
    """Copy all tensors of a nested state to host memory."""
    if isinstance(tree, torch.Tensor):
        # not .cpu(): on the CPU that would be the very tensor that the next step changes
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied(value) for value in tree)
    return tree


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
            # torch reads no uint32 back on every release; the words fit into int64
            "keys": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every generator of this process to what ``random_state`` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys = state["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, state["numpy"]["position"], 0, 0.0))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
