"""What a whole checkpoint is: its files with sizes and checksums, its origin, and its settings.

Readers of a run folder use it without torch; a run goes on only with the same binding settings.
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
CHECKPOINTS = "checkpoints"  # in a run folder
MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.pt"
FOLDER_PATTERN = "step-*"
SAVING_PREFIX = ".saving-"  # no pattern that looks for checkpoints matches it


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """Origin and contents of a checkpoint."""

    step: int  # optimizer steps done
    num_steps: int  # of the whole run
    world_size: int  # ranks that saved it
    config: dict[str, Any]  # settings of the run, plain
    config_hash: str  # of the settings that decide the weights
    dataset: dict[str, Any]  # sources, fingerprint, samples, simulated, normalisation, view size
    torch: str  # version that wrote it
    files: dict[str, dict[str, Any]]  # name to size and sha256


class CheckpointVersionError(ValueError):
    """A whole checkpoint of another format version."""


def folder_name(step: int) -> str:
    """Return the folder name of a checkpoint; names sort by step."""
    return f"step-{step:09d}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def saved_precision(run_dir: Path) -> str:
    """Return the precision in the newest readable checkpoint's settings; empty without one."""
    for folder in sorted((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN), reverse=True):
        try:
            return str(read_checkpoint_manifest(folder).config["precision"])
        except ValueError:
            continue  # resuming will say what is wrong with it
    return ""


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the folder of the newest checkpoint, valid or not."""
    return max((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN), default=None)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file in a checkpoint folder but the manifest."""
    return {
        path.name: {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write the manifest, the mark of completeness, after all other files."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    # The checksums of the files stand here; a flipped bit in them, or in the step, must show too.
    write_json(folder / MANIFEST_NAME, {**content, "digest": _digest(content)})


def read_checkpoint_manifest(folder: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointVersionError: it is of another format version.
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
    """Read the manifest and check every file against it; a ValueError names what is wrong first."""
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
    # whatever its layout on disk
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# What may change between two attempts of one run: where it lies, how it is watched and where it
# ends, but nothing that would give other weights at a step.
_FREE_TO_CHANGE = (
    *("run_dir", "shards", "max_steps", "log_every_steps", "max_skipped_steps"),
    *("world", "checkpoint", "monitor"),
)
_FREE_DATA = ("num_threads", "num_slots")


def binding_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide the weights; a run goes on only with the same ones."""
    plain = to_plain(config)
    for name in _FREE_TO_CHANGE:
        del plain[name]
    for name in _FREE_DATA:
        del plain["data"][name]
    return plain


def config_hash(config: TrainConfig) -> str:
    """Return sixteen hex digits of the binding settings."""
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
    """Raise ValueError if a checkpoint is of other settings or shards; the message says which."""
    if manifest.config_hash != config_hash(config):
        # A checkpoint from before a setting was introduced has its default, and another hash.
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
