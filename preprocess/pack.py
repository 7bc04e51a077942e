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
from preprocess.plan import (
    REJECTED_NAME,
    WORK_FOLDER,
    Plan,
    Rejected,
    make_or_read_plan,
    read_plan,
    rejection,
    totals_of,
    write_rejected,
    write_table,
)
from preprocess.progress import progress_of
from preprocess.shards.atomic_io import is_abandoned, write_json
from preprocess.shards.compression import check_codec
from preprocess.shards.format import HISTOGRAM, INDEX, LABELS, UNKNOWN_LABEL, ShardLayout, sha256_of
from preprocess.shards.manifest import (
    MANIFEST_NAME,
    BandStatistics,
    Manifest,
    ShardEntry,
    read_manifest,
)
from preprocess.shards.patch import Patch, PatchError, PatchRef
from preprocess.shards.reader import open_shard
from preprocess.shards.statistics import Histogram, empty_histogram, summarise
from preprocess.shards.writer import ShardOrigin, write_shard
from preprocess.sources import open_source
from preprocess.sources.base import Source

__all__ = ["PackError", "pack"]


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
    entry = ShardEntry(**data["entry"]) if data["entry"] is not None else None
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


LabelCounts = dict[str, dict[str, int]]
UNKNOWN = "unknown"
_OF_PRODUCTS = ("product", "baseline", "offset", "offset_authority")

SIMULATED_NOTICE = "simulated patches: synthesised by a program, never measured"


def build_manifest(
    folder: Path, origin: ShardOrigin, layout: ShardLayout, entries: Sequence[ShardEntry]
) -> Manifest:
    """Return the manifest of finished shards; writing it is left to the caller."""
    provenance: dict[str, Any] = {"notice": SIMULATED_NOTICE} if origin.simulated else {}
    return Manifest(
        source=origin.source,
        simulated=origin.simulated,
        processing_level=origin.processing_level,
        layout=layout,
        shards=tuple(entries),
        statistics=band_statistics(folder, entries, layout),
        provenance={
            **provenance,
            "label_counts": label_counts(folder, entries, layout),
            "products": products_of(folder, entries),
        },
    )


def band_statistics(
    folder: Path, entries: Sequence[ShardEntry], layout: ShardLayout
) -> dict[str, BandStatistics]:
    """Return exact statistics by band over all shards, from the histogram that each holds."""
    total = empty_histogram(len(layout.bands))
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            total += file[HISTOGRAM][()]
    return statistics_of(total, layout)


def statistics_of(histogram: Histogram, layout: ShardLayout) -> dict[str, BandStatistics]:
    """Return statistics by band from counts (bands of the layout, 65536)."""
    return {band: summarise(counts) for band, counts in zip(layout.bands, histogram, strict=True)}


def products_of(folder: Path, entries: Sequence[ShardEntry]) -> list[dict[str, Any]]:
    """Return each product with its baseline, the offset applied, who decided it, and its rows."""
    counts = Counter[tuple[Any, ...]]()
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            columns = [file[f"{INDEX}/{name}"][()].tolist() for name in _OF_PRODUCTS]
        counts.update(zip(*columns, strict=True))
    names = (*_OF_PRODUCTS, "rows")
    return [
        dict(zip(names, [*(_as_text(value) for value in key), rows], strict=True))
        for key, rows in sorted(counts.items())
    ]


def _as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def label_counts(folder: Path, entries: Sequence[ShardEntry], layout: ShardLayout) -> LabelCounts:
    """Return how many patches carry each class, and how many have no answer, by label set."""
    counts = {
        label_set.name: dict.fromkeys((*label_set.classes, UNKNOWN), 0)
        for label_set in layout.label_sets
    }
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            for label_set in layout.label_sets:
                rows = file[f"{LABELS}/{label_set.name}"][()]
                unknown = (rows == UNKNOWN_LABEL).all(axis=1)
                numbers = [*rows[~unknown].sum(axis=0, dtype=int).tolist(), int(unknown.sum())]
                for name, number in zip(counts[label_set.name], numbers, strict=True):
                    counts[label_set.name][name] += number
    return counts


_NAMED = 5  # missing shards that an error lists by name


class PackError(RuntimeError):
    """Packing cannot be completed; what is whole so far stays and is used by the next run."""


def finish(config: PackConfig) -> Manifest:
    """Return the manifest of a source of which every shard is packed; write it if it is missing.

    Raises:
        PackError: shards are missing, or more inputs are bad than ``max_rejected`` tolerates.
    """
    plan = make_or_read_plan(config, open_source(config.source))
    output = Path(config.output)
    notes = records_of(output, plan)
    missing = missing_shards(output)[1]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (" ..." if len(missing) > _NAMED else "")
        raise PackError(
            f"{len(missing)} of {plan.num_shards} shards are not packed ({named}): their parts "
            "failed or were cancelled, and their logs say why; the same command packs only these"
        )
    if (output / MANIFEST_NAME).exists():
        return read_manifest(output)
    return write_manifest(config, plan, [note for note in notes if note is not None])


def missing_shards(output: Path) -> tuple[int, list[str]]:
    """Return how many shards are planned, and the names of those that are not packed yet."""
    plan = read_plan(output)
    records = enumerate(records_of(output, plan))
    names = [shard_path(output, number).name for number, record in records if record is None]
    return plan.num_shards, names


def records_of(output: Path, plan: Plan) -> list[ShardNote | None]:
    """Return the records of all shards of a plan; None where one is not packed or not there."""
    notes = (read_note(output, number, plan.fingerprint) for number in range(plan.num_shards))
    return [
        note if note is not None and note.is_whole(output, thorough=False) else None
        for note in notes
    ]


def write_manifest(config: PackConfig, plan: Plan, notes: Sequence[ShardNote]) -> Manifest:
    """Write the list of rejected patches, the table of dropped ones, and last the manifest.

    Raises:
        PackError: too many inputs are bad, or none is good.
    """
    output = Path(config.output)
    rejected = plan.repeated() + tuple(item for note in notes for item in note.rejected)
    stop_above(config, plan, rejected)
    entries = tuple(note.entry for note in notes if note.entry is not None)
    if not entries:
        raise PackError(f"no patch of {config.source.root} could be packed")
    write_rejected(output / REJECTED_NAME, rejected)
    manifest = build_manifest(output, origin_of(config, plan), plan.layout, entries)
    manifest.provenance.update(_provenance(plan, rejected))
    selection = plan.selection()
    if selection:
        write_table(output, selection)
        manifest.provenance["selection"] = totals_of(selection)
    manifest.write(output)
    return manifest


def stop_above(config: PackConfig, plan: Plan, rejected: Sequence[Rejected]) -> None:
    """List what was rejected and give up if it is more than the settings tolerate.

    Raises:
        PackError: it is.
    """
    tolerated = int(config.max_rejected * plan.num_refs)
    if len(rejected) <= tolerated:
        return
    path, last = Path(config.output) / REJECTED_NAME, rejected[-1]
    write_rejected(path, rejected)
    raise PackError(
        f"{len(rejected)} of {plan.num_refs} patches are bad, max_rejected={config.max_rejected} "
        f"tolerates {tolerated}; the last: {last.file}: {last.reason} (all in {path})"
    )


def origin_of(config: PackConfig, plan: Plan) -> ShardOrigin:
    """Return what shards and manifest say of their source."""
    return ShardOrigin(config.source.name, plan.simulated, plan.processing_level)


def _provenance(plan: Plan, rejected: Sequence[Rejected]) -> dict[str, Any]:
    reasons = Counter(item.reason for item in rejected)
    return {
        "settings": plan.settings,
        "plan": plan.fingerprint,
        "patches_found": plan.num_refs,
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


def check_settings(config: PackConfig, root_exists: bool = True) -> None:
    """Refuse settings that cannot be packed, before anything is written.

    Args:
        config: the settings.
        root_exists: the rasters are there; false if another job will write them.

    Raises:
        ValueError: one message with every setting that is missing or wrong, and the fixes.
    """
    source, output, root = config.source, Path(config.output), Path(config.source.root)
    problems = []
    if not config.output:
        problems.append("output is empty; give a folder for the shards: output=SHARDS")
    elif output.exists() and not output.is_dir():
        problems.append(f"output is {output}, which is a file; give a folder")
    try:
        check_codec(config.compression)
    except ValueError as error:
        problems.append(str(error))
    try:
        opened = open_source(source)
        if root_exists and source.kind != "simulated" and not root.is_dir():
            raise ValueError(
                f"source.root is {root}, which is not a folder; give the folder of {source.kind}: "
                "source.root=DIR"
            )
        if (
            problems and root_exists
        ):  # else it is read when the plan is made: it may walk over all files
            opened.layout()
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))


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
    if not 0 <= part < num_parts:
        raise ValueError(f"part is {part} of {num_parts}; parts count from 0 to {num_parts - 1}")
    check_settings(config)
    source = open_source(config.source)
    task = _Task(config, source, make_or_read_plan(config, source), part, num_parts)
    remove_leftovers(task.output)
    changed = _pack_part(task, progress)
    notes = records_of(task.output, task.plan)
    whole = [note for note in notes if note is not None]
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
            if note is not None:
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
