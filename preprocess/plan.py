"""The plan of a pack, kept beside the shards: which patch goes where, what was left out, and why.

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

# Kept and dropped patches by product and reason; a product dropped whole counts as one.
Selection = dict[str, Counter[str]]


@dataclass(frozen=True, slots=True)
class QuarantinedPatch:
    """A patch that was left out because it is bad: a line of ``rejected.jsonl``."""

    id: str  # of its reference
    file: str  # at fault, relative to the root of the source
    reason: str  # what is wrong with it


def quarantined(sample: str, error: PatchError, root: Path) -> QuarantinedPatch:
    """Return the entry for a bad patch; files below the root are named relative to it."""
    file = Path(error.file)
    relative = file.relative_to(root) if file.is_relative_to(root) else file
    return QuarantinedPatch(sample, relative.as_posix(), error.reason)


def write_quarantine(path: Path, items: Iterable[QuarantinedPatch | Dropped]) -> None:
    """Write one JSON object a line, whole or not at all."""
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items]
    write_text(path, "".join(lines))


def read_quarantine(path: Path) -> tuple[QuarantinedPatch, ...]:
    """Return what ``write_quarantine`` wrote of bad patches; nothing if there is no such file."""
    return tuple(QuarantinedPatch(**line) for line in _read_lines(path))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # newline: an id may hold what str.splitlines takes for the end of a line
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def selection_of(dropped: Sequence[Dropped], refs: Iterable[PatchRef]) -> Selection:
    """Return the table of a plan; it is empty where nothing was dropped."""
    table: Selection = {}
    for item in dropped:
        table.setdefault(item.product, Counter())[item.reason] += max(1, len(item.places))
    for ref in refs if table else ():
        table.setdefault(ref.path, Counter())[KEPT] += 1
    return table


def totals_of(selection: Selection) -> dict[str, int]:
    """Return counts by reason over all products, kept first, then the most frequent."""
    total = sum(selection.values(), Counter[str]())
    kept = {KEPT: total.pop(KEPT, 0)} if selection else {}
    return kept | dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def describe_dropped(totals: dict[str, int]) -> str:
    """Return one line with the counts of what was left out; empty if nothing was."""
    reasons = [f"{reason} {count}" for reason, count in totals.items() if reason != KEPT]
    return f"left out by choice: {', '.join(reasons)}" if reasons else ""


def write_table(output: Path, selection: Selection) -> None:
    """Write the table as CSV: a line a product, a column a reason, a last line of sums."""
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
    """A plan on disk, of which only the head is in memory."""

    path: Path  # one line of JSON about the whole, then one line a reference
    fingerprint: str  # SHA-256 of the file
    settings: dict[str, Any]  # all on which the bytes of the shards depend
    layout: ShardLayout  # of every shard
    simulated: bool
    processing_level: str  # L1C or L2A; empty if unknown
    rows_per_shard: int  # references of a full shard
    num_refs: int  # in all

    @property
    def origin(self) -> ShardOrigin:
        """What its shards and manifest say of their source."""
        return ShardOrigin(self.settings["source.name"], self.simulated, self.processing_level)

    @property
    def num_shards(self) -> int:
        """Shards that the references fill."""
        return -(-self.num_refs // self.rows_per_shard)

    def shards(self, part: int, num_parts: int) -> Iterator[tuple[int, list[PatchRef]]]:
        """Yield number and references of the shards of one part."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            for shard in range(self.num_shards):
                lines = list(itertools.islice(file, self.rows_per_shard))
                if shard % num_parts == part:
                    yield shard, [PatchRef.from_json(line) for line in lines]

    @property
    def num_found(self) -> int:
        """Patches that the source holds, those of a repeated id among them."""
        return self.num_refs + len(self.repeated())

    def repeated(self) -> tuple[QuarantinedPatch, ...]:
        """Return the patches that were left out because their id was taken."""
        return read_quarantine(self.path.with_name(REPEATED_NAME))

    def selection(self) -> Selection:
        """Return how many patches of each product were kept and dropped; empty if none was."""
        dropped = [Dropped(**line) for line in _read_lines(self.path.with_name(DROPPED_NAME))]
        refs = (ref for _, shard in self.shards(0, 1) for ref in shard)
        return selection_of(dropped, refs)


def make_or_read_plan(config: PackConfig, source: Source) -> Plan:
    """Read the plan in the output folder, or discover the source and write it.

    Tasks that start together may each write it: they find the same and the files are equal. A
    pack that ended before its first shard leaves its folder to the corrected command.

    Raises:
        ValueError: the output belongs to other settings or to something else, or the source
            holds nothing or the same id twice.
    """
    output = Path(config.output)
    path = output / WORK_FOLDER / PLAN_NAME
    settings = _settings_of(config)
    if not path.exists():
        foreign = sorted(path.name for path in output.glob("[!.]*") if path.name != WORK_FOLDER)
        # looked at again: another part may have planned and packed in the meantime
        if foreign and not path.exists():
            raise ValueError(
                f"output {output} is not empty (it holds {foreign[0]}) and is not an unfinished "
                "pack; give an empty or new folder"
            )
        _write_plan(path, config, source)
    plan = read_plan(output)
    if plan.settings != settings:
        # shards, or one that another process may be writing
        in_the_making = (path for path in output.glob(".shard-*.tmp") if not is_abandoned(path))
        if not any(output.glob("shard-*.h5")) and not any(in_the_making):
            _write_plan(path, config, source)
            plan = read_plan(output)
    if plan.settings != settings:
        # what only one of two kinds of source knows is left out: the kind itself says more
        differences = [
            f"{key} was {old!r}, now {settings[key]!r}"
            for key, old in plan.settings.items()
            if key in settings and old != settings[key]
        ]
        raise ValueError(
            f"{config.output} holds a pack of other settings: {'; '.join(differences)}; give "
            "another output or remove it"
        )
    return plan


def _settings_of(config: PackConfig) -> dict[str, Any]:
    """Return the settings on which the shards depend, as flat JSON."""
    source = {f"source.{key}": value for key, value in asdict(config.source).items()}
    # the same words must mean the same folder wherever the command is started
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
    first = next(refs, None)  # before anything is written: a wrong root shows here
    if first is None:
        raise ValueError(
            f"{config.source.root} holds no patch that the settings do not exclude; "
            + describe_dropped(totals_of(selection_of(dropped, ())))
        )
    head = {
        "settings": _settings_of(config),
        "layout": layout.to_json(),
        "simulated": source.simulated,
        "processing_level": source.processing_level(),
        "rows_per_shard": max(1, int(config.shard_size_mib * 2**20) // layout.sample_bytes),
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
    """Yield one reference of each id; equal ids stand next to each other."""

    def chosen() -> Iterator[PatchRef]:
        for item in source.discover():
            if isinstance(item, Dropped):
                dropped.append(item)
            else:
                yield item

    root, last = Path(config.source.root), ""
    for name, group in itertools.groupby(chosen(), key=lambda ref: ref.id):
        if name < last:
            raise ValueError(f"{config.source.kind} yields {name} after {last}: not in order")
        # by path: a folder may list its files in any order, and the shards must not depend on it
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
        ValueError: there is none, or another version of this program wrote it.
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
