"""What a checkpoint says of the run it belongs to, and the refusal of any other run."""

from __future__ import annotations

from typing import Any

import torch

from simclr.checkpoint.manifest import CheckpointManifest
from simclr.config import TrainConfig
from simclr.corpus import Corpus
from simclr.settings import binding_settings, config_hash, differing_settings, from_plain, to_plain
from simclr.world import World


def about_checkpoint(
    config: TrainConfig, corpus: dict[str, Any], world: World, step: int, num_steps: int
) -> CheckpointManifest:
    """Return the manifest of a checkpoint to be saved, without its files."""
    return CheckpointManifest(
        step=step,
        num_steps=num_steps,
        world_size=world.size,
        config=to_plain(config),
        config_hash=config_hash(config),
        corpus=corpus,
        torch=torch.__version__,
        files={},
    )


def describe_corpus(corpus: Corpus, view_size_px: int) -> dict[str, Any]:
    """Return what a checkpoint remembers of its training patches."""
    return {
        "sources": list(corpus.sources),
        "simulated": corpus.simulated,
        "fingerprint": corpus.fingerprint,
        "num_samples": corpus.num_samples,
        "bands": list(corpus.bands),
        "view_size_px": view_size_px,
        "normalisation": corpus.normalisation,
    }


def refuse_other_run(config: TrainConfig, corpus: Corpus, manifest: CheckpointManifest) -> None:
    """Let a run go on from a checkpoint of its own only.

    Raises:
        ValueError: the checkpoint has other settings or other shards; the message says which.
    """
    if manifest.config_hash != config_hash(config):
        # A checkpoint from before a setting was introduced has its default, and another hash.
        before = binding_settings(from_plain(TrainConfig, manifest.config))
        lines = differing_settings(before, binding_settings(config))
        if lines:
            raise ValueError(
                f"run_dir {config.run_dir} holds a run of other settings ({'; '.join(lines)}); "
                "give another run_dir, or the settings it was started with"
            )
    if manifest.corpus["fingerprint"] != corpus.fingerprint:
        raise ValueError(
            f"run_dir {config.run_dir} was trained on other shards (fingerprint "
            f"{manifest.corpus['fingerprint']}, now {corpus.fingerprint}); give another run_dir"
        )
