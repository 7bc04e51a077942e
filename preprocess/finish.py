"""Packed shards and their notes come in, the manifest that says they are complete goes out."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from preprocess import raster
from preprocess.config import PackConfig
from preprocess.notes import ShardNote, read_note, shard_path
from preprocess.plan import Plan, make_or_read_plan
from preprocess.rejected import REJECTED_NAME, Rejected, write_rejected
from preprocess.selection import totals_of, write_table
from preprocess.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from preprocess.shards.writer import ShardOrigin
from preprocess.sources import open_source
from preprocess.summary import build_manifest

_NAMED = 5  # missing shards that an error lists by name


class PackError(RuntimeError):
    """Packing cannot be completed; what is whole so far stays and is used by the next run."""


def finish(config: PackConfig) -> Manifest:
    """Return the manifest of a source of which every shard is packed; write it if it is missing.

    Raises:
        PackError: shards are missing, or more inputs are bad than ``max_rejected`` tolerates.
    """
    plan = make_or_read_plan(config, open_source(config.source))
    notes = notes_of(config, plan)
    output = Path(config.output)
    missing = [shard_path(output, number).name for number, note in enumerate(notes) if note is None]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (" ..." if len(missing) > _NAMED else "")
        raise PackError(
            f"{len(missing)} of {plan.num_shards} shards are not packed ({named}): their parts "
            "failed or were cancelled, and their logs say why; the same command packs only these"
        )
    if (output / MANIFEST_NAME).exists():
        return read_manifest(output)
    return write_manifest(config, plan, [note for note in notes if note])


def notes_of(config: PackConfig, plan: Plan) -> list[ShardNote | None]:
    """Return the notes of all shards of a plan; None where one is not packed or not there."""
    output = Path(config.output)
    notes = (read_note(output, number, plan.fingerprint) for number in range(plan.num_shards))
    return [note if note and note.is_whole(output, thorough=False) else None for note in notes]


def write_manifest(config: PackConfig, plan: Plan, notes: Sequence[ShardNote]) -> Manifest:
    """Write the list of rejected patches, the table of dropped ones, and last the manifest.

    Raises:
        PackError: too many inputs are bad, or none is good.
    """
    output = Path(config.output)
    rejected = plan.repeated() + tuple(item for note in notes for item in note.rejected)
    stop_above(config, plan, rejected)
    entries = tuple(note.entry for note in notes if note.entry)
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
    return ShardOrigin(config.source.name, plan.simulated)


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
