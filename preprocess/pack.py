"""Pack a source into shards and a manifest; parts run in parallel and can be killed and restarted.

A shard is complete or absent; its record is written after it, and the manifest last.
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

import h5py
import numpy as np

from preprocess import raster
from preprocess.config import OnError, PackConfig
from preprocess.plan import (
    REJECTED_NAME,
    WORK_FOLDER,
    Plan,
    QuarantinedPatch,
    make_or_read_plan,
    quarantined,
    read_plan,
    totals_of,
    write_quarantine,
    write_table,
)
from preprocess.progress import progress_of
from preprocess.shards.atomic_io import is_abandoned, temporary_path, write_json
from preprocess.shards.format import (
    Patch,
    PatchError,
    PatchRef,
    ShardLayout,
    check_codec,
    sha256_of,
)
from preprocess.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    build_manifest,
    read_manifest,
)
from preprocess.shards.writer import write_shard
from preprocess.sources import open_source
from preprocess.sources.base import Source

_NAMED = 5  # maximum number of missing shards listed in an error
_log = logging.getLogger(__name__)


class PackError(RuntimeError):
    """Packing cannot be completed; finished shards stay and are reused by the next run."""


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The outcome of one shard of a plan."""

    plan: str  # fingerprint of the plan; records of other plans are ignored
    entry: ShardEntry | None  # None if every patch was rejected and no file was written
    rejected: tuple[QuarantinedPatch, ...]

    def is_whole(self, output: Path, thorough: bool) -> bool:
        """Return whether the file exists in full size; ``thorough`` also compares its checksum."""
        if self.entry is None:
            return True
        path = output / self.entry.file
        if not path.is_file() or path.stat().st_size != self.entry.size_bytes:
            return False
        return not thorough or sha256_of(path) == self.entry.sha256


def read_record(output: Path, shard: int, plan: str) -> ShardRecord | None:
    """Return the record of a shard, or None if it has not been packed under this plan."""
    try:
        data = json.loads(_record_path(output, shard).read_bytes())
    except FileNotFoundError:
        return None
    if data["plan"] != plan:
        return None
    entry = ShardEntry(**data["entry"]) if data["entry"] is not None else None
    return ShardRecord(plan, entry, tuple(QuarantinedPatch(**item) for item in data["rejected"]))


def _record_path(output: Path, shard: int) -> Path:
    return output / WORK_FOLDER / shard_path(output, shard).with_suffix(".json").name


def shard_path(output: Path, shard: int) -> Path:
    """Return the path of a shard; five digits make the names sort."""
    return output / f"shard-{shard:05d}.h5"


def remove_leftovers(output: Path, shard: int | None = None) -> None:
    """Remove temporary files of killed runs.

    Those of processes no longer running on this machine, and all those of ``shard`` if given: only
    one part ever packs it.
    """
    for folder in (output, output / WORK_FOLDER):
        for path in folder.glob(".*.tmp"):
            # a shard that is being shortened has two dots
            name = path.name.lstrip(".")
            own = shard is not None and name.startswith(f"{shard_path(output, shard).stem}.")
            if own or is_abandoned(path):
                path.unlink(missing_ok=True)


def records_of(output: Path, plan: Plan, thorough: bool = False) -> list[ShardRecord | None]:
    """Return the records of all shards of a plan; None for each shard not packed or missing.

    ``thorough`` counts shards that do not have their checksum as missing.
    """
    records = (read_record(output, number, plan.fingerprint) for number in range(plan.num_shards))
    return [
        record if record is not None and record.is_whole(output, thorough) else None
        for record in records
    ]


def describe_missing(output: Path, records: Sequence[ShardRecord | None] | None = None) -> str:
    """Return how many of the planned shards are not packed yet, and which; empty if all are."""
    records = records_of(output, read_plan(output)) if records is None else records
    missing = [shard_path(output, k).name for k, record in enumerate(records) if record is None]
    named = ", ".join(missing[:_NAMED]) + " ..." * (len(missing) > _NAMED)
    return f"{len(missing)} of {len(records)} shards are not packed ({named})" if missing else ""


def _lost_its_manifest(output: Path) -> bool:
    """Return whether only checksums can tell if what had been packed completely is still whole."""
    return (output / REJECTED_NAME).exists() and not (output / MANIFEST_NAME).exists()


def finish(config: PackConfig) -> Manifest:
    """Return the manifest of a fully packed source, and write it if it is missing.

    Raises:
        PackError: shards are missing, or more inputs are bad than ``max_rejected`` allows.
    """
    output = Path(config.output)
    plan = make_or_read_plan(config, open_source(config.source))
    records = records_of(output, plan, _lost_its_manifest(output))
    if missing := describe_missing(output, records):
        raise PackError(
            f"{missing}: their parts failed or were cancelled, and their logs say why; the same "
            "command packs only these"
        )
    return _manifest_of(config, plan, records)


def _manifest_of(
    config: PackConfig, plan: Plan, records: Sequence[ShardRecord | None], rewrite: bool = False
) -> Manifest:
    """Return the manifest of complete shards; write it if it is missing or ``rewrite`` is set.

    It is written last, after the list of rejected patches and the table of dropped ones.
    """
    output = Path(config.output)
    if not rewrite and (output / MANIFEST_NAME).exists():
        return read_manifest(output)
    whole = [record for record in records if record is not None]
    rejected = plan.repeated() + tuple(item for record in whole for item in record.rejected)
    _check_max_rejected(config, plan, rejected)
    entries = tuple(record.entry for record in whole if record.entry is not None)
    if not entries:
        raise PackError(f"no patch of {config.source.root} could be packed")
    write_quarantine(output / REJECTED_NAME, rejected)
    manifest = build_manifest(output, plan.origin, plan.layout, entries)
    manifest.provenance.update(
        settings=plan.settings,
        plan=plan.fingerprint,
        patches_found=plan.num_found,
        patches_rejected=len(rejected),
        reasons_of_rejection=dict(sorted(Counter(item.reason for item in rejected).items())),
        versions={
            "simclr-s2": version("simclr-s2"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "h5py": h5py.__version__,
            "hdf5": h5py.version.hdf5_version,
            **raster.versions(),
        },
    )
    selection = plan.selection()
    if selection:
        write_table(output, selection)
        manifest.provenance["selection"] = totals_of(selection)
    manifest.write(output)
    return manifest


def _check_max_rejected(
    config: PackConfig, plan: Plan, rejected: Sequence[QuarantinedPatch]
) -> None:
    """List the rejected patches and give up if there are more than the settings allow."""
    # a quotient is rounded as the setting was; 0.29 times 100 would be 28.999...
    if len(rejected) / plan.num_found <= config.max_rejected:
        return
    path, last = Path(config.output) / REJECTED_NAME, rejected[-1]
    write_quarantine(path, rejected)
    raise PackError(
        f"{len(rejected)} of {plan.num_found} patches are bad, more than "
        f"max_rejected={config.max_rejected}; the last: {last.file}: {last.reason} (all in {path})"
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One process's share of the work, and the patches rejected so far."""

    config: PackConfig
    source: Source
    plan: Plan
    output: Path
    thorough: bool  # compare the checksums of shards packed before
    rejected: list[QuarantinedPatch] = field(default_factory=list)

    def read(self, ref: PatchRef) -> Patch:
        """Read one patch in the form in which it is stored."""
        return read_patch(self.source, ref, self.plan.layout, Path(self.config.source.root))


def check_settings(config: PackConfig, root_exists: bool = True) -> None:
    """Reject settings that cannot be packed, before anything is written.

    ``root_exists`` is False if another job will write the rasters.

    Raises:
        ValueError: settings are missing or wrong; one message lists all of them and the fixes.
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
        if problems and root_exists:  # else planning does it: layout() may walk over all files
            opened.layout()
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))


def pack(
    config: PackConfig, part: int = 0, num_parts: int = 1, progress: bool = True
) -> Manifest | None:
    """Pack one part of a source; a rerun resumes where the last run was interrupted.

    Shards are distributed round-robin over ``num_parts`` parts, counted from 0.

    Returns:
        The manifest if every part is done, else None: the last part to finish writes it.

    Raises:
        ValueError: the settings, the root or the output folder cannot be used.
        PatchError: an input is bad and ``on_error`` is ``stop``.
        PackError: more inputs are bad than ``max_rejected`` allows, or none is good.
    """
    if not 0 <= part < num_parts:
        raise ValueError(f"part is {part} of {num_parts}; parts count from 0 to {num_parts - 1}")
    check_settings(config)
    source = open_source(config.source)
    plan = make_or_read_plan(config, source)
    output = Path(config.output)
    # with a manifest, checksums were compared; without one, the last run may have left any state
    this = _Part(config, source, plan, output, thorough=not (output / MANIFEST_NAME).exists())
    remove_leftovers(output)
    starts = range(0, plan.num_refs, plan.rows_per_shard)[part::num_parts]
    total = sum(min(plan.rows_per_shard, plan.num_refs - start) for start in starts)
    changed = False
    with raster.session(), progress_of(total, "pack", progress) as advance:
        for shard, refs in plan.shards(part, num_parts):
            record = _done_before(this, shard, refs)
            if record is None:
                _pack_shard(this, shard, refs, advance)
                changed = True
            else:
                this.rejected.extend(record.rejected)
                advance(len(refs))
    # other parts may not have begun to compare theirs
    thorough = this.thorough and num_parts > 1 and _lost_its_manifest(output)
    records = records_of(output, plan, thorough)
    return None if None in records else _manifest_of(config, plan, records, rewrite=changed)


def _done_before(part: _Part, shard: int, refs: list[PatchRef]) -> ShardRecord | None:
    """Return the record of a shard that need not be packed again, else None."""
    record = read_record(part.output, shard, part.plan.fingerprint)
    if record is None or not record.is_whole(part.output, part.thorough):
        return None
    bad = {rejected.id for rejected in record.rejected}
    for ref in refs:
        if ref.id in bad:
            try:
                part.read(ref)
            except PatchError:
                continue
            return None  # repaired since then
    return record


def _pack_shard(
    part: _Part, shard: int, refs: list[PatchRef], advance: Callable[[int], object]
) -> None:
    """Pack a shard; patches that cannot be read are appended to ``part.rejected``."""
    config, plan, path = part.config, part.plan, shard_path(part.output, shard)

    def good_patches() -> Iterator[Patch]:
        """Read the patches of the shard and set the bad ones aside."""
        for ref in refs:
            try:
                yield part.read(ref)
            except PatchError as error:
                if config.on_error is OnError.stop:
                    raise
                part.rejected.append(quarantined(ref.id, error, Path(config.source.root)))
                _check_max_rejected(config, plan, part.rejected)
            advance(1)

    remove_leftovers(part.output, shard)
    # outdated from here on; without the record, no other part takes the shard for packed
    (part.output / MANIFEST_NAME).unlink(missing_ok=True)
    _record_path(part.output, shard).unlink(missing_ok=True)
    before = len(part.rejected)
    try:
        entry = write_shard(
            path, plan.layout, good_patches(), len(refs), plan.origin, config.compression
        )
    except FileNotFoundError as error:
        if temporary_path(path).name not in str(error):
            raise
        raise PackError(
            f"{path.name} was taken over by another process that packs into {part.output}, and is "
            "being packed by it; start every part once"
        ) from error
    if entry is None:  # an earlier run may have found good patches
        path.unlink(missing_ok=True)
    rejected = tuple(part.rejected[before:])
    if rejected:
        _log.warning(
            "%s: left out %d patches, the first %s: %s",
            path.name, len(rejected), rejected[0].file, rejected[0].reason,
        )  # fmt: skip
    record = ShardRecord(plan.fingerprint, entry, rejected)
    write_json(_record_path(part.output, shard), asdict(record))


def read_patch(source: Source, ref: PatchRef, layout: ShardLayout, root: Path) -> Patch:
    """Read one patch in the form in which it is stored.

    Raises:
        PatchError: the patch cannot be read, or is nodata throughout.
    """
    patch = source.read(ref, layout)
    if patch.valid_fraction == 0:
        raise PatchError(root / ref.path, "every pixel is nodata")
    return replace(patch, path=ref.path)
