"""Packing: a source comes in, shards and the manifest that says they are complete go out.

Any number of parts may pack at once, be killed and be started again: a shard is either whole or
absent, and the note that says so is written after it. The manifest is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from preprocess import raster
from preprocess.config import OnError, PackConfig
from preprocess.finish import PackError, notes_of, origin_of, stop_above, write_manifest
from preprocess.notes import ShardNote, read_note, remove_leftovers, shard_path, write_note
from preprocess.patch import Patch, PatchError, PatchRef
from preprocess.plan import Plan, make_or_read_plan
from preprocess.progress import progress_of
from preprocess.rejected import Rejected, rejection
from preprocess.shards.codec import check_codec
from preprocess.shards.layout import ShardLayout
from preprocess.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from preprocess.shards.writer import write_shard
from preprocess.sources import open_source
from preprocess.sources.source import Source

__all__ = ["PackError", "pack"]

_log = logging.getLogger(__name__)


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
    notes = notes_of(config, task.plan)
    whole = [note for note in notes if note]
    if len(whole) < len(notes):
        return None
    if not changed and (task.output / MANIFEST_NAME).exists():
        return read_manifest(task.output)
    return write_manifest(config, task.plan, whole)


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
    origin = origin_of(task.config, task.plan)
    entry = write_shard(path, task.plan.layout, patches, len(refs), origin, task.config.compression)
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
            task.rejected.append(rejection(ref.id, error, Path(task.config.source.root)))
            stop_above(task.config, task.plan, task.rejected)
        advance(1)


def _read(task: _Task, ref: PatchRef) -> Patch:
    return read_patch(task.source, ref, task.plan.layout, Path(task.config.source.root))


def read_patch(source: Source, ref: PatchRef, layout: ShardLayout, root: Path) -> Patch:
    """Read one patch as it is stored.

    Raises:
        PatchError: it cannot be read, or holds nothing.
    """
    patch = source.read(ref, layout)
    if patch.valid_fraction == 0:
        raise PatchError(root / ref.path, "every pixel is nodata")
    return replace(patch, path=ref.path)
