"""What is known of a finished shard before there is a manifest: a small JSON beside the plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from preprocess.plan import WORK_FOLDER
from preprocess.rejected import Rejected
from preprocess.shards.atomic import is_abandoned, write_json
from preprocess.shards.checksums import sha256_of
from preprocess.shards.manifest import ShardEntry


@dataclass(frozen=True, slots=True)
class ShardNote:
    """The outcome of one shard of a plan.

    Attributes:
        plan: fingerprint of the plan; a note of another plan counts for nothing.
        entry: for the manifest; None when every patch was rejected, so that there is no file.
        rejected: the patches left out.
    """

    plan: str
    entry: ShardEntry | None
    rejected: tuple[Rejected, ...]

    def is_whole(self, output: Path, thorough: bool) -> bool:
        """Say whether the file is there in full size; ``thorough`` compares its checksum too."""
        if self.entry is None:
            return True
        path = output / self.entry.file
        if not path.is_file() or path.stat().st_size != self.entry.size_bytes:
            return False
        return not thorough or sha256_of(path) == self.entry.sha256


def shard_path(output: Path, shard: int) -> Path:
    """Return the path of a shard; the number has five digits, so that names sort."""
    return output / f"shard-{shard:05d}.h5"


def write_note(output: Path, shard: int, note: ShardNote) -> None:
    """Write the note of a shard; call it when the shard is in place."""
    write_json(_note_path(output, shard), asdict(note))


def read_note(output: Path, shard: int, plan: str) -> ShardNote | None:
    """Return the note of a shard under a plan, or None if it has not been packed under it."""
    path = _note_path(output, shard)
    if not path.is_file():
        return None
    data = json.loads(path.read_bytes())
    entry = ShardEntry(**data["entry"]) if data["entry"] else None
    rejected = tuple(Rejected(**values) for values in data["rejected"])
    return ShardNote(data["plan"], entry, rejected) if data["plan"] == plan else None


def remove_leftovers(output: Path, shard: int | None = None) -> None:
    """Remove temporary files of killed runs.

    Those of processes that are gone from this machine; of a shard, if it is given, all: only one
    part ever packs it.
    """
    for folder in (output, output / WORK_FOLDER):
        for path in folder.glob(".*.tmp"):
            own = shard is not None and shard_path(output, shard).stem in path.name
            if own or is_abandoned(path):
                path.unlink(missing_ok=True)


def _note_path(output: Path, shard: int) -> Path:
    return output / WORK_FOLDER / shard_path(output, shard).with_suffix(".json").name
