"""Packing: a source comes in, shards and the manifest that says they are complete go out.

Any number of parts may pack at once, be killed and be started again: a shard is either whole or
absent, and the note that says so is written after it. The manifest is written last.
"""

from __future__ import annotations

import json
import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from preprocess import raster
from preprocess.config import OnError, PackConfig
from preprocess.notes import (
    Rejected,
    ShardNote,
    read_note,
    remove_leftovers,
    shard_path,
    write_note,
)
from preprocess.patch import Patch, PatchError, PatchRef
from preprocess.plan import Plan, make_or_read_plan
from preprocess.progress import progress_of
from preprocess.shards.atomic import write_text
from preprocess.shards.codec import check_codec
from preprocess.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from preprocess.shards.writer import ShardOrigin, write_shard
from preprocess.sources import open_source
from preprocess.sources.source import Source
from preprocess.summary import build_manifest

REJECTED_NAME = "rejected.jsonl"

_log = logging.getLogger(__name__)


class PackError(RuntimeError):
    """Packing cannot be completed; what is whole so far stays and is used by the next run."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One process' share of the work, and the patches it had to leave out so far."""

    config: PackConfig
    source: Source
    plan: Plan
    part: int
    num_parts: int
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """Folder of the shards."""
        return Path(self.config.output)

    @property
    def tolerated(self) -> int:
        """Patches that may be rejected, over all parts."""
        return int(self.config.max_rejected * self.plan.num_refs)


def pack(
    config: PackConfig, part: int = 0, num_parts: int = 1, progress: bool = True
) -> Manifest | None:
    """Pack one part of a source; run again, it goes on where it was interrupted.

    Args:
        config: source, output and limits.
        part: which part this is, from 0.
        num_parts: into how many parts the shards are dealt.
        progress: show a bar on a terminal, log lines elsewhere.

    Returns:
        The manifest if every part is done by now, else None: the last part to end writes it.

    Raises:
        ValueError: the settings, the root or the output folder cannot be used.
        PatchError: an input is bad and ``on_error`` is ``stop``.
        PackError: more inputs are bad than ``max_rejected`` tolerates, or none is good.
    """
    if not config.output:
        raise ValueError("output is empty; give a folder for the shards: output=SHARDS")
    if not 0 <= part < num_parts:
        raise ValueError(f"part is {part} of {num_parts}; parts count from 0 to {num_parts - 1}")
    check_codec(config.compression)
    source = open_source(config.source)
    task = _Task(config, source, make_or_read_plan(config, source), part, num_parts)
    remove_leftovers(task.output)
    changed = _pack_part(task, progress)
    notes = [read_note(task.output, k, task.plan.fingerprint) for k in range(task.plan.num_shards)]
    if None in notes:
        return None
    if not changed and (task.output / MANIFEST_NAME).exists():
        return read_manifest(task.output)
    return _finish(task, [note for note in notes if note])


def _pack_part(task: _Task, progress: bool) -> bool:
    """Pack the shards of this part that are not whole yet; say whether there were any."""
    changed = False
    total = task.plan.rows_of_part(task.part, task.num_parts)
    with raster.session(), progress_of(total, "pack", progress) as advance:
        for shard, refs in task.plan.shards(task.part, task.num_parts):
            note = _done_before(task, shard, refs)
            if note:
                task.rejected.extend(note.rejected)
                advance(len(refs))
            else:
                _pack_shard(task, shard, refs, advance)
                changed = True
    return changed


def _done_before(task: _Task, shard: int, refs: list[PatchRef]) -> ShardNote | None:
    """Return the note of a shard that need not be packed again."""
    note = read_note(task.output, shard, task.plan.fingerprint)
    # a manifest vouches for checksums; without one an earlier run may have ended in any way
    thorough = not (task.output / MANIFEST_NAME).exists()
    if note is None or not note.is_whole(task.output, thorough):
        return None
    bad = {rejected.id for rejected in note.rejected}
    mended = [ref for ref in refs if ref.id in bad and _is_good(task, ref)]
    return None if mended else note


def _is_good(task: _Task, ref: PatchRef) -> bool:
    try:
        _read(task, ref)
    except PatchError:
        return False
    return True


def _pack_shard(
    task: _Task, shard: int, refs: list[PatchRef], advance: Callable[[int], object]
) -> None:
    remove_leftovers(task.output, shard)
    (task.output / MANIFEST_NAME).unlink(missing_ok=True)  # from here on it would not be true
    before = len(task.rejected)
    path = shard_path(task.output, shard)
    patches = _good_patches(task, refs, advance)
    entry = write_shard(
        path, task.plan.layout, patches, len(refs), _origin(task), task.config.compression
    )
    rejected = tuple(task.rejected[before:])
    if rejected:
        _log.warning("%s: left out %d, first %s", path.name, len(rejected), rejected[0])
    write_note(task.output, shard, ShardNote(task.plan.fingerprint, entry, rejected))


def _good_patches(
    task: _Task, refs: list[PatchRef], advance: Callable[[int], object]
) -> Iterator[Patch]:
    """Yield the patches that can be read; the others are appended to the task's rejected."""
    for ref in refs:
        try:
            yield _read(task, ref)
        except PatchError as error:
            if task.config.on_error is OnError.stop:
                raise
            task.rejected.append(_rejection(task, ref, error))
            _stop_above(task, task.rejected)
        advance(1)


def _read(task: _Task, ref: PatchRef) -> Patch:
    patch = task.source.read(ref, task.plan.layout)
    if patch.valid_fraction == 0:
        raise PatchError(Path(task.config.source.root) / ref.path, "every pixel is nodata")
    return replace(patch, path=ref.path)


def _rejection(task: _Task, ref: PatchRef, error: PatchError) -> Rejected:
    root, file = Path(task.config.source.root), Path(error.file)
    relative = file.relative_to(root) if file.is_relative_to(root) else file
    return Rejected(ref.id, relative.as_posix(), error.reason)


def _origin(task: _Task) -> ShardOrigin:
    return ShardOrigin(task.config.source.name, task.plan.simulated)


def _stop_above(task: _Task, rejected: Sequence[Rejected]) -> None:
    if len(rejected) <= task.tolerated:
        return
    _list_rejected(task, rejected)
    config, last = task.config, rejected[-1]
    raise PackError(
        f"{len(rejected)} of {task.plan.num_refs} patches are bad, max_rejected="
        f"{config.max_rejected} tolerates {task.tolerated}; the last: {last.file}: {last.reason} "
        f"(all in {task.output / REJECTED_NAME})"
    )


def _list_rejected(task: _Task, rejected: Sequence[Rejected]) -> None:
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rejected]
    write_text(task.output / REJECTED_NAME, "".join(lines))


def _finish(task: _Task, notes: list[ShardNote]) -> Manifest:
    """Write the list of rejected patches, then the manifest."""
    rejected = tuple(item for note in notes for item in note.rejected)
    _stop_above(task, rejected)
    entries = tuple(note.entry for note in notes if note.entry)
    if not entries:
        raise PackError(f"no patch of {task.config.source.root} could be packed")
    _list_rejected(task, rejected)
    manifest = build_manifest(task.output, _origin(task), task.plan.layout, entries)
    manifest.provenance.update(_provenance(task, rejected))
    manifest.write(task.output)
    return manifest


def _provenance(task: _Task, rejected: Sequence[Rejected]) -> dict[str, Any]:
    reasons = Counter(item.reason for item in rejected)
    return {
        "settings": task.plan.settings,
        "plan": task.plan.fingerprint,
        "patches_found": task.plan.num_refs,
        "patches_rejected": len(rejected),
        "reasons_of_rejection": dict(sorted(reasons.items())),
        "versions": {
            "simclr-s2": version("simclr-s2"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "h5py": h5py.__version__,
            "hdf5": h5py.version.hdf5_version,
            **raster.versions(),
        },
    }
