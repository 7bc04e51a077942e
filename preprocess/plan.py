"""The packing plan, stored beside the shards: where each patch goes, what is excluded, and why.

Shard k holds the references from ``k * rows_per_shard`` on, whatever the number of parts.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from preprocess.config import OnError, PackConfig
from preprocess.shards.atomic_io import atomic_path, is_abandoned, write_text
from preprocess.shards.format import (
    FORMAT_VERSION,
    Dropped,
    PatchError,
    PatchRef,
    ShardLayout,
    sha256_of,
)
from preprocess.shards.manifest import ShardOrigin
from preprocess.sources.base import Source

WORK_FOLDER = "packing"
PLAN_NAME, REPEATED_NAME, DROPPED_NAME = "plan.jsonl", "repeated.jsonl", "dropped.jsonl"
REJECTED_NAME, TABLE_NAME = "rejected.jsonl", "selection.csv"
KEPT = "kept"

# Kept and dropped patches by product and reason; a product dropped entirely counts as one.
Selection = dict[str, Counter[str]]


@dataclass(frozen=True, slots=True)
class QuarantinedPatch:
    """A patch excluded because it is bad: one line of ``rejected.jsonl``."""

    id: str  # id of its reference
    file: str  # faulty file, relative to the root of the source
    reason: str  # fault of the file


def quarantined(sample: str, error: PatchError, root: Path) -> QuarantinedPatch:
    """Return the entry of a bad patch; files below the root are named relative to it."""
    file = Path(error.file)
    relative = file.relative_to(root) if file.is_relative_to(root) else file
    return QuarantinedPatch(sample, relative.as_posix(), error.reason)


def write_quarantine(path: Path, items: Iterable[QuarantinedPatch | Dropped]) -> None:
    """Write one JSON object per line, atomically."""
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items]
    write_text(path, "".join(lines))


def read_quarantine(path: Path) -> tuple[QuarantinedPatch, ...]:
    """Return the bad patches written by ``write_quarantine``; empty if there is no such file."""
    return tuple(QuarantinedPatch(**line) for line in _read_lines(path))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # newline: an id may contain characters that str.splitlines treats as line ends
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def selection_of(dropped: Sequence[Dropped], refs: Iterable[PatchRef]) -> Selection:
    """Return the selection table of a plan; empty if nothing was dropped."""
    table: Selection = {}
    for item in dropped:
        table.setdefault(item.product, Counter())[item.reason] += max(1, len(item.places))
    for ref in refs if table else ():
        table.setdefault(ref.path, Counter())[KEPT] += 1
    return table


def totals_of(selection: Selection) -> dict[str, int]:
    """Return counts by reason over all products: kept first, then by descending count."""
    total = sum(selection.values(), Counter[str]())
    kept = {KEPT: total.pop(KEPT, 0)} if selection else {}
    return kept | dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def describe_dropped(totals: dict[str, int]) -> str:
    """Return one line with the counts of dropped patches; empty if none was dropped."""
    reasons = [f"{reason} {count}" for reason, count in totals.items() if reason != KEPT]
    return f"left out by choice: {', '.join(reasons)}" if reasons else ""


def write_table(output: Path, selection: Selection) -> None:
    """Write the table as CSV: one line per product, one column per reason, totals last."""
    totals = totals_of(selection)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["product", *totals])
    for product in sorted(selection):
        writer.writerow([product, *(selection[product][reason] for reason in totals)])
    writer.writerow(["all", *totals.values()])
    write_text(output / TABLE_NAME, text.getvalue())


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan on disk; only its header is in memory."""

    path: Path  # file with a JSON header line, then one line per reference
    fingerprint: str  # SHA-256 of the file
    settings: dict[str, Any]  # all settings that affect the bytes of the shards
    layout: ShardLayout  # layout of every shard
    simulated: bool
    processing_level: str  # L1C or L2A; empty if unknown
    rows_per_shard: int  # references in a full shard
    num_refs: int  # total number of references

    @property
    def origin(self) -> ShardOrigin:
        """Source information stored in the shards and the manifest."""
        return ShardOrigin(self.settings["source.name"], self.simulated, self.processing_level)

    @property
    def num_shards(self) -> int:
        """Number of shards that the references fill."""
        return -(-self.num_refs // self.rows_per_shard)

    def shards(self, part: int, num_parts: int) -> Iterator[tuple[int, list[PatchRef]]]:
        """Yield the number and the references of each shard of one part."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            for shard in range(self.num_shards):
                lines = list(itertools.islice(file, self.rows_per_shard))
                if shard % num_parts == part:
                    yield shard, [PatchRef.from_json(line) for line in lines]

    @property
    def num_found(self) -> int:
        """Number of patches in the source, including those with a repeated id."""
        return self.num_refs + len(self.repeated())

    def repeated(self) -> tuple[QuarantinedPatch, ...]:
        """Return the patches excluded because their id was already in use."""
        return read_quarantine(self.path.with_name(REPEATED_NAME))

    def selection(self) -> Selection:
        """Return the kept and dropped patches of each product; empty if none was dropped."""
        dropped = [Dropped(**line) for line in _read_lines(self.path.with_name(DROPPED_NAME))]
        refs = (ref for _, shard in self.shards(0, 1) for ref in shard)
        return selection_of(dropped, refs)


def make_or_read_plan(config: PackConfig, source: Source) -> Plan:
    """Read the plan in the output folder, or discover the source and write it.

    Tasks started together may each write it, with equal content. Without any shard, the folder is
    planned again for corrected settings.

    Raises:
        ValueError: the output belongs to other settings or to something else, or the source is
            empty or not in order of ids. PatchError: an id repeats and ``on_error`` is ``stop``.
    """
    output = Path(config.output)
    path = output / WORK_FOLDER / PLAN_NAME
    settings = _settings_of(config)
    if not path.exists():
        foreign = sorted(path.name for path in output.glob("[!.]*") if path.name != WORK_FOLDER)
        # check again: another part may have planned and packed in the meantime
        if foreign and not path.exists():
            raise ValueError(
                f"output {output} is not empty (it holds {foreign[0]}) and is not an unfinished "
                "pack; give an empty or new folder"
            )
        _write_plan(path, config, source)
    plan = read_plan(output)
    differences = _differences(plan.settings, settings)
    # a shard that another running process may be writing
    in_the_making = (path for path in output.glob(".shard-*.tmp") if not is_abandoned(path))
    if differences and not any(output.glob("shard-*.h5")) and not any(in_the_making):
        _write_plan(path, config, source)
        plan = read_plan(output)
        differences = _differences(plan.settings, settings)
    if differences:
        raise ValueError(
            f"{config.output} holds a pack of other settings: {'; '.join(differences)}; give "
            "another output or remove it"
        )
    return plan


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    # settings that only one of two source kinds has are left out: the kind itself says more
    named = [
        f"{key} was {old[key]!r}, now {new[key]!r}"
        for key in old
        # also as text: NaN, which may be the mark of nodata, does not equal itself
        if key in new and old[key] != new[key] and json.dumps(old[key]) != json.dumps(new[key])
    ]
    alike = named or old.keys() == new.keys()
    return named if alike else ["another version of this program wrote it"]


def _settings_of(config: PackConfig) -> dict[str, Any]:
    """Return the settings on which the shards depend, as a flat dict of JSON values."""
    source = {f"source.{key}": value for key, value in asdict(config.source).items()}
    # a relative root would name another folder when the command is run elsewhere
    source["source.root"] = str(Path(config.source.root).absolute())
    return {
        **source,
        "shard_size_mib": config.shard_size_mib,
        "limit": config.limit,
        "compression": config.compression,
        "format_version": FORMAT_VERSION,
    }


def _write_plan(path: Path, config: PackConfig, source: Source) -> None:
    layout = source.layout()
    dropped: list[Dropped] = []
    repeated: list[QuarantinedPatch] = []
    refs = itertools.islice(_kept(config, source, dropped, repeated), config.limit or None)
    first = next(refs, None)  # before anything is written: a wrong root fails here
    if first is None:
        raise ValueError(
            f"{config.source.root} holds no patch that the settings do not exclude; "
            + describe_dropped(totals_of(selection_of(dropped, ())))
        )
    shard_mib = min(config.shard_size_mib, 2**40)  # the setting may be infinite
    head = {
        "settings": _settings_of(config),
        "layout": layout.to_json(),
        "simulated": source.simulated,
        "processing_level": source.processing_level(),
        "rows_per_shard": max(1, int(shard_mib * 2**20) // layout.sample_bytes),
    }
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head) + "\n")
        for ref in itertools.chain([first], refs):
            file.write(ref.to_json() + "\n")
        # before the plan is in place
        write_quarantine(path.with_name(DROPPED_NAME), dropped)
        write_quarantine(path.with_name(REPEATED_NAME), repeated)


def _kept(
    config: PackConfig, source: Source, dropped: list[Dropped], repeated: list[QuarantinedPatch]
) -> Iterator[PatchRef]:
    """Yield one reference per id; the source yields equal ids consecutively."""

    def chosen() -> Iterator[PatchRef]:
        """Yield the references, and note what the source dropped."""
        for item in source.discover():
            if isinstance(item, Dropped):
                dropped.append(item)
            else:
                yield item

    root, last = Path(config.source.root), ""
    for name, group in itertools.groupby(chosen(), key=lambda ref: ref.id):
        if name < last:
            raise ValueError(f"{config.source.kind} yields {name} after {last}: not in order")
        # sort by path: folders list files in any order, and the shards must not depend on it
        first, *others = sorted(group, key=lambda ref: ref.path)
        for ref in others:
            error = PatchError(root / ref.path, f"id {name} appears twice: {first.path} has it")
            if config.on_error is OnError.stop:
                raise error
            repeated.append(quarantined(name, error, root))
        yield first
        last = name


def read_plan(output: Path) -> Plan:
    """Read the plan of an output folder.

    Raises:
        ValueError: there is no plan, or another version of this program wrote it.
    """
    path = output / WORK_FOLDER / PLAN_NAME
    if not path.is_file():
        raise ValueError(f"{output} holds no {WORK_FOLDER}/{PLAN_NAME}; only packing can make it")
    with path.open("rb") as file:
        head = json.loads(next(file))
        num_refs = sum(1 for _ in file)
    of_file = {"path", "fingerprint", "num_refs"}
    names = [field.name for field in fields(Plan) if field.name not in of_file]
    missing = [name for name in names if name not in head]
    if missing:
        raise ValueError(
            f"{path} was written by another version of this program (it has no {missing[0]}); "
            "give another output, or remove the folder and pack again"
        )
    in_head = {name: head[name] for name in names}
    in_head["layout"] = ShardLayout.from_json(head["layout"])
    return Plan(path=path, fingerprint=sha256_of(path), num_refs=num_refs, **in_head)
