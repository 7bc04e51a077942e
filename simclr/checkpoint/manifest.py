"""What a whole checkpoint is: the list of its files with sizes and checksums, and its origin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocess.shards.atomic import write_json

FORMAT = "simclr-s2-checkpoint"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.pt"
FOLDER_PATTERN = "step-*"

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """Origin and contents of a checkpoint.

    Attributes:
        step: optimizer steps done.
        num_steps: steps of the whole run.
        world_size: ranks that saved it.
        config: settings of the run, plain.
        config_hash: of the settings that decide the weights.
        corpus: sources, fingerprint, samples, simulated, normalisation, view size.
        torch: version that wrote it.
        files: name to size and sha256.
    """

    step: int
    num_steps: int
    world_size: int
    config: dict[str, Any]
    config_hash: str
    corpus: dict[str, Any]
    torch: str
    files: dict[str, dict[str, Any]]


def folder_name(step: int) -> str:
    """Return the folder name of a checkpoint; names sort by step."""
    return f"step-{step:09d}"


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file in a checkpoint folder but the manifest."""
    return {
        path.name: {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write the manifest, the mark of completeness, after all other files."""
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    write_json(folder / MANIFEST_NAME, {**head, **asdict(manifest)})


def read_checkpoint_manifest(folder: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises:
        ValueError: it is missing, unreadable, or of another format.
    """
    path = folder / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind = (data.pop("format"), data.pop("format_version"))
        manifest = CheckpointManifest(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable checkpoint manifest ({error})") from error
    if kind != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{path} is of {kind[0]} version {kind[1]}, not {FORMAT} {FORMAT_VERSION}")
    return manifest


def verify(folder: Path) -> CheckpointManifest:
    """Read the manifest and check every file against it.

    Raises:
        ValueError: the first thing that is wrong, with the file's name.
    """
    manifest = read_checkpoint_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if path.stat().st_size != expected["size_bytes"]:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, not {expected['size_bytes']}"
            )
        if sha256_of(path) != expected["sha256"]:
            raise ValueError(f"{path} does not match its checksum")
    return manifest


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
