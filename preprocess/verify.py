"""Checking packed shards: a folder comes in, a report of all that is wrong goes out.

Everything that the manifest claims is compared with the files, and everything that can be
recomputed is: checksums of files and samples, histograms, statistics, label counts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.config import VerifyConfig
from preprocess.faults import content_faults, structure_faults
from preprocess.progress import progress_of
from preprocess.shards.codec import check_codec
from preprocess.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from preprocess.shards.reader import open_readers
from preprocess.statistics import Histogram, empty_histogram
from preprocess.summary import label_counts, statistics_of

PACK_AGAIN = "repair=true packs it again from the source"
SUM_UP_AGAIN = "repair=true sums the shards up again"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: name in the folder.
        what: what is wrong with it, with the values seen.
        cure: what to do.
    """

    file: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.cure}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong.

    Attributes:
        shards: number of shards that the manifest names.
        rows: number of samples that it names.
        simulated: True when the patches were synthesised.
        quick: True when checksums and pixels were left out.
        problems: empty when all is well.
    """

    shards: int
    rows: int
    simulated: bool
    quick: bool
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify(config: VerifyConfig, progress: bool = True) -> VerifyReport:
    """Compare the shards of a folder with its manifest and with themselves.

    Raises:
        ValueError: there is no folder, no manifest, or it cannot be read.
    """
    if not config.shards:
        raise ValueError("shards is empty; give a folder with packed shards: shards=SHARDS")
    folder = Path(config.shards)
    manifest = read_manifest(folder)
    problems = [
        Problem(entry.file, fault, PACK_AGAIN)
        for entry in manifest.shards
        for fault in structure_faults(folder / entry.file, entry, manifest.layout)
    ]
    if not config.quick:
        for codec in {entry.codec for entry in manifest.shards}:
            check_codec(codec)  # without its plug-in every chunk would look damaged
        problems += _content_problems(
            folder, manifest, {p.file for p in problems}, config, progress
        )
    return VerifyReport(
        len(manifest.shards), manifest.rows, manifest.simulated, config.quick, problems
    )


def _content_problems(
    folder: Path, manifest: Manifest, broken: set[str], config: VerifyConfig, progress: bool
) -> list[Problem]:
    sound = [entry for entry in manifest.shards if entry.file not in broken]
    total, problems = _look_at(folder, manifest, sound, config.threads, progress)
    if broken or problems:
        return problems  # sums over faulty shards would only repeat what is known
    if statistics_of(total, manifest.layout) != manifest.statistics:
        problems.append(Problem(MANIFEST_NAME, "statistics differ from the pixels", SUM_UP_AGAIN))
    problems += _sum_problems(folder, manifest, manifest.shards)
    return problems


def _look_at(
    folder: Path, manifest: Manifest, entries: list[ShardEntry], threads: int, progress: bool
) -> tuple[Histogram, list[Problem]]:
    """Return the counts of all pixels, and what is wrong with shards."""
    problems: list[Problem] = []
    total = empty_histogram(len(manifest.layout.bands))
    rows = sum(entry.rows for entry in entries)
    # checksums are computed outside the interpreter's lock
    with (
        progress_of(rows, "verify", progress) as advance,
        ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool,
    ):
        looks = [
            (entry, pool.submit(content_faults, folder / entry.file, entry, manifest.layout))
            for entry in entries
        ]
        for entry, look in looks:
            histogram, faults = look.result()
            total += histogram
            problems += [Problem(entry.file, fault, PACK_AGAIN) for fault in faults]
            advance(entry.rows)
    return total, problems


def _sum_problems(
    folder: Path, manifest: Manifest, entries: tuple[ShardEntry, ...]
) -> Iterator[Problem]:
    claimed = manifest.provenance.get("label_counts")
    if claimed != label_counts(folder, entries, manifest.layout):
        yield Problem(MANIFEST_NAME, "label counts differ from the labels", SUM_UP_AGAIN)
    ids = Counter[str]()
    for reader in open_readers(folder, manifest):
        ids.update(reader.index("id").tolist())
    repeated = [name for name, count in ids.items() if count > 1]
    if repeated:
        yield Problem(
            MANIFEST_NAME, f"sample {repeated[0]} is there twice", "pack into a new folder"
        )
