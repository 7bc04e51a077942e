"""The manifest of a complete checkpoint: files with sizes and checksums, origin, and settings.

It can be read without torch. A run resumes only with the same binding settings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocess.shards.atomic_io import write_json
from preprocess.shards.format import sha256_of
from simclr.config import TrainConfig, from_plain, require, to_plain

FORMAT = "simclr-s2-checkpoint"
FORMAT_VERSION = 2
CHECKPOINTS = "checkpoints"  # subfolder of a run folder
MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.pt"
FOLDER_PATTERN = f"step-{'[0-9]' * 9}"  # not a copy that somebody keeps beside it
SAVING_PREFIX = ".saving-"  # not matched by FOLDER_PATTERN


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """Origin and contents of a checkpoint."""

    step: int  # number of steps done
    num_steps: int  # total number of steps of the run
    world_size: int  # number of ranks
    config: dict[str, Any]  # settings of the run as plain data
    config_hash: str  # of the settings that determine the weights
    dataset: dict[str, Any]  # sources, fingerprint, samples, bands, normalisation, view size, ...
    torch: str  # version of torch
    files: dict[str, dict[str, Any]]  # name to size and sha256


class CheckpointVersionError(ValueError):
    """An intact checkpoint of another format version."""


def folder_name(step: int) -> str:
    """Return the folder name of a checkpoint; names sort by step."""
    return f"step-{step:09d}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def saved_precision(run_dir: Path) -> str:
    """Return the precision of the newest checkpoint with a readable manifest; empty if none."""
    for folder in sorted((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN), reverse=True):
        try:
            return str(read_checkpoint_manifest(folder).config["precision"])
        except ValueError:
            continue  # resuming will report the problem
    return ""


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the folder of the newest checkpoint, valid or not; None if there is none."""
    return max((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN), default=None)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file in a checkpoint folder except the manifest."""
    return {
        path.name: {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write the manifest, which marks a checkpoint complete, after all other files."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    # The digest also detects flipped bits in the manifest itself: checksums, step, settings.
    write_json(folder / MANIFEST_NAME, {**content, "digest": _digest(content)})


def read_checkpoint_manifest(folder: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointVersionError: it has another format version.
        ValueError: it is missing or damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        intact = data.pop("digest") == _digest(data)
        kind = (data.pop("format"), data.pop("format_version"))
        if intact and kind[0] == FORMAT and kind[1] != FORMAT_VERSION:
            raise CheckpointVersionError(
                f"{folder} is a checkpoint of format version {kind[1]}, and this release reads "
                f"version {FORMAT_VERSION}; continue with the release that wrote it, or start "
                "over in another run_dir"
            )
        manifest = CheckpointManifest(**data)
    except CheckpointVersionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable checkpoint manifest ({error})") from error
    if kind != (FORMAT, FORMAT_VERSION) or not intact:
        raise ValueError(f"{path} does not match its own checksum")
    return manifest


def verify(folder: Path) -> CheckpointManifest:
    """Read the manifest and check every file against it; a ValueError names the first problem."""
    manifest = read_checkpoint_manifest(folder)
    if folder.name != folder_name(manifest.step):
        raise ValueError(f"{folder} holds step {manifest.step}: somebody has renamed it")
    for name, expected in manifest.files.items():
        path, wanted = folder / name, expected["size_bytes"]
        try:
            require(path.is_file(), f"{path} is missing")
            size = path.stat().st_size
            require(size == wanted, f"{path} has {size} bytes, not {wanted}")
            require(sha256_of(path) == expected["sha256"], f"{path} does not match its checksum")
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    return manifest


def _digest(content: dict[str, Any]) -> str:
    # independent of the layout on disk
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Settings that may change between attempts of a run: location, monitoring and length, but nothing
# that would change the weights at a step.
_FREE_TO_CHANGE = (
    *("run_dir", "shards", "max_steps", "log_every_steps", "max_skipped_steps"),
    *("world", "checkpoint", "monitor"),
)
_FREE_DATA = ("num_threads", "num_slots")


def binding_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that determine the weights; a run resumes only if they are unchanged."""
    plain = to_plain(config)
    for name in _FREE_TO_CHANGE:
        del plain[name]
    for name in _FREE_DATA:
        del plain["data"][name]
    return plain


def config_hash(config: TrainConfig) -> str:
    """Return a hash of the binding settings, sixteen hex digits."""
    text = json.dumps(binding_settings(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return ``key: old, now new`` for each setting that differs between two plain configs."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differing_settings(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before}, now {after}")
    return lines


def refuse_other_run(config: TrainConfig, fingerprint: str, manifest: CheckpointManifest) -> None:
    """Refuse a checkpoint of another run: ValueError names the differing settings or shards."""
    if manifest.config_hash != config_hash(config):
        # A checkpoint written before a setting existed takes its default, and so has another hash.
        before = binding_settings(from_plain(TrainConfig, manifest.config))
        lines = differing_settings(before, binding_settings(config))
        require(
            not lines,
            f"run_dir {config.run_dir} holds a run of other settings ({'; '.join(lines)}); "
            "give another run_dir, or the settings it was started with",
        )
    own = manifest.dataset["fingerprint"]
    require(
        own == fingerprint,
        f"run_dir {config.run_dir} was trained on other shards (fingerprint {own}, now "
        f"{fingerprint}); give another run_dir",
    )
