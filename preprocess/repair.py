"""Faulty shards and their source come in; shards equal to the byte to what was packed go out.

A shard is written beside the others and takes its place only if it has the checksum that the
manifest tells: repairing can bring back what was packed, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from preprocess import raster
from preprocess.config import SourceConfig, VerifyConfig
from preprocess.notes import read_note, remove_leftovers, shard_path
from preprocess.pack import read_patch
from preprocess.patch import Patch, PatchError, PatchRef
from preprocess.plan import WORK_FOLDER, Plan, read_plan
from preprocess.shards.atomic import publish
from preprocess.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from preprocess.shards.writer import ShardOrigin, write_shard
from preprocess.sources import SOURCES, open_source
from preprocess.sources.source import Source
from preprocess.summary import build_manifest
from preprocess.verify import VerifyReport, verify

_log = logging.getLogger(__name__)


class RepairError(RuntimeError):
    """A shard cannot be brought back; it was left as it is."""


def verify_and_repair(config: VerifyConfig, progress: bool = True) -> tuple[VerifyReport, int]:
    """Check a packed folder, pack faulty shards again from their source, and check again.

    Returns:
        The last report, and the number of files that were written anew.

    Raises:
        ValueError: there is no packed folder, or it does not hold what packing noted of it.
        RepairError: the source no longer gives the bytes that were packed.
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
        _sum_up_again(folder, manifest)
    return verify(config, progress), max(1, len(faulty))


def _pack_again(folder: Path, manifest: Manifest, faulty: list[ShardEntry], root: str) -> None:
    plan = read_plan(folder)
    source_config = _source_of(plan.settings, root)
    source = open_source(source_config)
    by_name = {entry.file: entry for entry in faulty}
    with raster.session():
        for number, refs in plan.shards(0, 1):
            entry = by_name.get(shard_path(folder, number).name)
            if entry:
                rejected = _rejected(folder, number, plan)
                kept = [ref for ref in refs if ref.id not in rejected]
                patches = _patches(source, source_config.root, plan, kept)
                _replace(folder, manifest, entry, patches)


def _replace(folder: Path, manifest: Manifest, entry: ShardEntry, patches: Iterator[Patch]) -> None:
    path = folder / WORK_FOLDER / "repaired" / entry.file
    origin = ShardOrigin(manifest.source, manifest.simulated)
    path.parent.mkdir(exist_ok=True)
    try:
        again = write_shard(path, manifest.layout, patches, entry.rows, origin, entry.codec)
        if again != entry:
            raise RepairError(
                f"{entry.file} cannot be brought back: the source, or a library, no longer gives "
                "the bytes that the manifest tells; pack into a new folder"
            )
        remove_leftovers(folder)
        publish(path, folder / entry.file)
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
    _log.info("%s: packed again, equal to the byte", entry.file)


def _patches(source: Source, root: str, plan: Plan, refs: list[PatchRef]) -> Iterator[Patch]:
    for ref in refs:
        try:
            yield read_patch(source, ref, plan.layout, Path(root))
        except PatchError as error:
            raise RepairError(
                f"a patch that was packed cannot be read any more: {error}"
            ) from error


def _rejected(folder: Path, number: int, plan: Plan) -> set[str]:
    note = read_note(folder, number, plan.fingerprint)
    if note is None:
        raise ValueError(f"{folder} lost its notes on shard {number}; pack again")
    return {item.id for item in note.rejected}


def _source_of(settings: dict[str, Any], root: str) -> SourceConfig:
    """Rebuild the settings of the source; the rasters may have moved to another root."""
    hints = get_type_hints(SOURCES[settings["source.kind"]])
    kinds = [kind for kind in hints.values() if isinstance(kind, type)]
    kind = next(kind for kind in kinds if issubclass(kind, SourceConfig))
    values = {entry.name: settings[f"source.{entry.name}"] for entry in fields(kind)}
    return kind(**{**values, "root": root or values["root"]})


def _sum_up_again(folder: Path, manifest: Manifest) -> None:
    origin = ShardOrigin(manifest.source, manifest.simulated)
    again = build_manifest(folder, origin, manifest.layout, manifest.shards)
    replace(again, provenance={**manifest.provenance, **again.provenance}).write(folder)
    _log.info("%s: summed up again from the shards", MANIFEST_NAME)
