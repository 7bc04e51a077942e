"""Verify packed shards and repair them from their source; called by ``simclr-verify``.

Every claim of the manifest is compared with the files and recomputed where possible.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import h5py
import numpy as np

from preprocess import raster
from preprocess.config import VerifyConfig
from preprocess.pack import read_patch, read_record, remove_leftovers, shard_path
from preprocess.plan import WORK_FOLDER, read_plan
from preprocess.progress import progress_of
from preprocess.shards import open_readers
from preprocess.shards.atomic_io import publish
from preprocess.shards.format import (
    CODECS,
    FACTS_CRC32,
    FORMAT_VERSION,
    FRACTIONS,
    HISTOGRAM,
    INDEX,
    INDEX_FIELDS,
    LABELS,
    PATCHES,
    PIXEL_DTYPE,
    UNKNOWN_LABEL,
    Patch,
    PatchError,
    PatchRef,
    ShardLayout,
    crc32_by_row,
    crc32_of,
    facts_in,
    load_filter,
    open_shard,
    sha256_of,
)
from preprocess.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    build_manifest,
    empty_histogram,
    read_manifest,
)
from preprocess.shards.writer import (
    Block,
    block_rows,
    count_block,
    offsets_in,
    stored_block,
    write_shard,
)
from preprocess.sources import SOURCES, open_source
from preprocess.sources.base import Source

# Exceptions that h5py raises if a flipped bit has damaged the structure of a file.
_UNREADABLE = (AttributeError, OSError, KeyError, RuntimeError, TypeError, ValueError)
_CHANGED = "differs from its checksum"
_PACK_AGAIN = "repair=true packs it again from the source"
_SUM_UP_AGAIN = "repair=true sums the shards up again"

_log = logging.getLogger(__name__)


class RepairError(RuntimeError):
    """A shard cannot be restored; it was left unchanged."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault."""

    file: str  # name in the folder
    what: str  # description with the values found
    fix: str  # suggested action

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.fix}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Scope and result of a verification."""

    shards: int  # number of shards in the manifest
    rows: int  # number of samples in the manifest
    simulated: bool
    quick: bool  # checksums and pixels were skipped
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems


def verify(config: VerifyConfig, progress: bool = True) -> VerifyReport:
    """Compare the shards of a folder with its manifest and with themselves.

    Raises:
        ValueError: there is no folder or manifest, or the manifest cannot be read.
    """
    if not config.shards:
        raise ValueError("shards is empty; give a folder with packed shards: shards=SHARDS")
    folder = Path(config.shards)
    manifest = read_manifest(folder)
    problems = [
        Problem(entry.file, fault, _PACK_AGAIN)
        for entry in manifest.shards
        for fault in _structure_faults(folder / entry.file, entry, manifest.layout)
    ]
    if not config.quick:
        for codec in {entry.codec for entry in manifest.shards}:
            load_filter(codec)  # without it, every sample would seem damaged
        broken = {problem.file for problem in problems}
        sound = [entry for entry in manifest.shards if entry.file not in broken]
        # threads suffice: checksums are computed without the GIL
        with (
            progress_of(sum(entry.rows for entry in sound), "verify", progress) as advance,
            ThreadPoolExecutor(config.threads or len(os.sched_getaffinity(0))) as pool,
        ):
            looks = [pool.submit(_content_faults, folder, e, manifest.layout) for e in sound]
            for entry, look in zip(sound, looks, strict=True):
                problems += [Problem(entry.file, fault, _PACK_AGAIN) for fault in look.result()]
                advance(entry.rows)
        if not problems:  # totals over faulty shards would only repeat known problems
            problems += _sum_problems(folder, manifest)
    return VerifyReport(
        len(manifest.shards), manifest.rows, manifest.simulated, config.quick, problems
    )


def _sum_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Yield wrong totals of the manifest; each shard is already known to match its own entry."""
    again = build_manifest(folder, manifest.origin, manifest.layout, manifest.shards)
    claimed = {
        # older manifests do not count clipped pixels
        band: replace(found, clipped_fraction=again.statistics[band].clipped_fraction)
        if found.clipped_fraction is None
        else found
        for band, found in manifest.statistics.items()
    }
    if again.statistics != claimed:
        yield Problem(MANIFEST_NAME, "statistics differ from the pixels", _SUM_UP_AGAIN)
    if again.provenance["label_counts"] != manifest.provenance.get("label_counts"):
        yield Problem(MANIFEST_NAME, "label counts differ from the labels", _SUM_UP_AGAIN)
    ids = Counter[str]()
    for reader in open_readers(folder, manifest):
        ids.update(reader.index("id").tolist())
    repeated = [f"sample {name} is there twice" for name, count in ids.items() if count > 1]
    if repeated:
        yield Problem(MANIFEST_NAME, repeated[0], "pack into a new folder")


def _structure_faults(path: Path, entry: ShardEntry, layout: ShardLayout) -> list[str]:
    """Return faults in presence, size, and shapes and dtypes of data sets; read no pixel."""
    if not path.is_file():
        return ["is missing"]
    size = path.stat().st_size
    if size != entry.size_bytes:
        return [f"has {size} bytes, the manifest says {entry.size_bytes}"]
    try:
        with open_shard(path) as file:
            return list(_table_faults(file, entry, layout))
    except _UNREADABLE as error:
        return [f"cannot be read as a shard ({error})"]


def _table_faults(file: h5py.File, entry: ShardEntry, layout: ShardLayout) -> Iterator[str]:
    # No attribute of text: it lies in HDF5's global heap, which has no checksum and in which a
    # flipped bit of a size makes the library search for ever.
    if (version := int(file.attrs["format_version"])) != FORMAT_VERSION:
        yield f"is of format version {version}, not {FORMAT_VERSION}"
    rows = entry.rows
    shapes: dict[str, tuple[int, ...]] = {
        **{f"{PATCHES}/{group.name}": (rows, *group.shape) for group in layout.groups},
        **{f"{LABELS}/{s.name}": (rows, len(s.classes)) for s in layout.label_sets},
        **{f"{FRACTIONS}/{s.name}": (rows, len(s.classes)) for s in layout.fraction_sets},
        **{f"{INDEX}/{name}": (rows,) for name in (*INDEX_FIELDS, FACTS_CRC32)},
        f"{INDEX}/transform": (rows, 6),
    }
    for name, shape in shapes.items():
        if name not in file:
            yield f"holds no {name}"
        elif file[name].shape != shape:
            yield f"{name} is of shape {file[name].shape}, the manifest says {shape}"
        elif name.startswith(PATCHES) and file[name].dtype != PIXEL_DTYPE:
            yield f"{name} is of type {file[name].dtype}, not {PIXEL_DTYPE}"
    offsets = offsets_in(file, layout)
    if offsets != entry.offsets:
        yield f"pixels begin at {offsets}, the manifest says {entry.offsets}"


def _content_faults(folder: Path, entry: ShardEntry, layout: ShardLayout) -> list[str]:
    """Return faults in checksums and pixels.

    Changed samples are named; changes elsewhere in the file show in the file's checksum.
    """
    faults: list[str] = []
    try:
        with open_shard(folder / entry.file) as file:
            faults.extend(_pixel_faults(file, entry, layout))
            faults.extend(_row_faults(file, layout))
        # a disk may fail in bytes that no sample needs
        changed = sha256_of(folder / entry.file) != entry.sha256
    except _UNREADABLE as error:
        return [*faults, f"cannot be read to its end ({error})"]
    if changed:
        place = "" if faults else f" in its structure, which concerns all {entry.rows} samples"
        faults.append(f"differs from its SHA-256 in the manifest{place}")
    return faults


def _pixel_faults(file: h5py.File, entry: ShardEntry, layout: ShardLayout) -> Iterator[str]:
    checksums = file[f"{INDEX}/crc32"][()]
    histogram = empty_histogram(len(layout.bands))
    sound = True
    for row, block in _readable_blocks(file, layout, entry.rows):
        if isinstance(block, OSError):
            sound = False
            yield f"{_sample(file, row)} cannot be decoded ({block})"
            continue
        count_block(histogram, block, layout)
        for place in range(len(next(iter(block.values())))):
            sample = {name: pixels[place] for name, pixels in block.items()}
            if crc32_of(sample, layout) != checksums[row + place]:
                sound = False
                yield f"{_sample(file, row + place)} {_CHANGED}"
    # with changed pixels, wrong counts would only repeat known faults
    if sound and not np.array_equal(histogram, file[HISTOGRAM][()]):
        yield f"{HISTOGRAM} differs from the pixels"


def _readable_blocks(
    file: h5py.File, layout: ShardLayout, rows: int
) -> Iterator[tuple[int, Block | OSError]]:
    """Yield the first row and the pixels of each block; the error for a sample not decodable."""
    for part in block_rows(rows):
        try:
            yield part.start, stored_block(file, layout, part)
        except OSError:
            # one damaged chunk makes its block unreadable: find it sample by sample
            for row in range(part.start, part.stop):
                try:
                    yield row, stored_block(file, layout, slice(row, row + 1))
                except OSError as error:
                    yield row, error


def _sample(file: h5py.File, row: int) -> str:
    return f"sample {file[f'{INDEX}/id'][row].decode(errors='replace')} (row {row})"


def _row_faults(file: h5py.File, layout: ShardLayout) -> Iterator[str]:
    changed = crc32_by_row(facts_in(file, layout)) != file[f"{INDEX}/{FACTS_CRC32}"][()]
    for row in np.flatnonzero(changed).tolist():
        yield f"what is known of {_sample(file, row)} {_CHANGED}"
    for label_set in layout.label_sets:
        rows = file[f"{LABELS}/{label_set.name}"][()]
        answered = rows[(rows != UNKNOWN_LABEL).any(axis=1)]
        single = label_set.kind == "single" and (answered.sum(axis=1) != 1).any()
        if (answered > 1).any() or single:
            yield f"{LABELS}/{label_set.name} holds rows that are no {label_set.kind} label"


def verify_and_repair(config: VerifyConfig, progress: bool = True) -> tuple[VerifyReport, int]:
    """Check a packed folder, pack faulty shards again from their source, and check again.

    Returns:
        The last report, and the number of files that were rewritten.

    Raises:
        ValueError: there is no packed folder, or its plan or records are missing.
        RepairError: the source no longer yields the bytes that were packed.
    """
    report = verify(config, progress)
    if report.ok:
        return report, 0
    folder = Path(config.shards)
    manifest = read_manifest(folder)
    files = {problem.file for problem in report.problems}
    faulty = [entry for entry in manifest.shards if entry.file in files]
    if faulty:
        _pack_again(folder, manifest, faulty, config.root)
    else:
        again = build_manifest(folder, manifest.origin, manifest.layout, manifest.shards)
        replace(again, provenance={**manifest.provenance, **again.provenance}).write(folder)
        _log.info("%s: recomputed from the shards", MANIFEST_NAME)
    return verify(config, progress), max(1, len(faulty))


def _pack_again(folder: Path, manifest: Manifest, faulty: list[ShardEntry], root: str) -> None:
    plan = read_plan(folder)
    # the rasters may have moved to another root
    kind = SOURCES[plan.settings["source.kind"]].config
    names = [entry.name for entry in fields(kind) if f"source.{entry.name}" in plan.settings]
    values = {name: plan.settings[f"source.{name}"] for name in names}
    config = kind(**{**values, "root": root or values["root"]})
    source = open_source(config)
    by_name = {entry.file: entry for entry in faulty}
    with raster.session():
        for number, refs in plan.shards(0, 1):
            entry = by_name.get(shard_path(folder, number).name)
            if entry is None:
                continue
            record = read_record(folder, number, plan.fingerprint)
            if record is None:
                raise ValueError(f"{folder} lost its record of shard {number}; pack again")
            rejected = {item.id for item in record.rejected}
            kept = [ref for ref in refs if ref.id not in rejected]
            _replace(folder, manifest, entry, _patches(source, config.root, kept, plan.layout))


def _replace(folder: Path, manifest: Manifest, entry: ShardEntry, patches: Iterator[Patch]) -> None:
    if entry.codec not in CODECS:
        raise RepairError(
            f"{entry.file} is compressed with {entry.codec}, which is no longer written; pack into "
            f"a new folder with compression={CODECS[-1]}"
        )
    remove_leftovers(folder)
    path = folder / WORK_FOLDER / entry.file
    try:
        layout, origin = manifest.layout, manifest.origin
        again = write_shard(path, layout, patches, entry.rows, origin, entry.codec)
        if again != entry:
            raise RepairError(
                f"{entry.file} cannot be brought back: the source, or a library, no longer gives "
                "the bytes listed in the manifest; pack into a new folder"
            )
        publish(path, folder / entry.file)
    finally:
        path.unlink(missing_ok=True)
    _log.info("%s: repacked, identical to the byte", entry.file)


def _patches(
    source: Source, root: str, refs: list[PatchRef], layout: ShardLayout
) -> Iterator[Patch]:
    for ref in refs:
        try:
            yield read_patch(source, ref, layout, Path(root))
        except PatchError as error:
            raise RepairError(
                f"a patch that was packed cannot be read any more: {error}"
            ) from error
