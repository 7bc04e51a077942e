"""What was kept, what was dropped and why: a stream of decisions comes in, a table goes out.

To drop a patch for its clouds or its place is a choice, not an error: it is listed apart from the
rejected ones and counts against no limit.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from preprocess.shards.atomic_io import write_text
from preprocess.shards.patch import PatchRef

KEPT = "kept"
TABLE_NAME = "selection.csv"
DROPPED_NAME = "dropped.jsonl"

# Kept and dropped patches by product and reason; a product dropped whole counts as one.
Selection = dict[str, Counter[str]]
Stream = Iterable["PatchRef | Dropped"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Patches of one product that were left out for one reason.

    Attributes:
        product: file or folder of it, as in ``PatchRef.path``.
        reason: a phrase, the same for all that it applies to.
        places: their ground cells; empty if the product as a whole was dropped.
    """

    product: str
    reason: str
    places: tuple[str, ...] = ()


def kept(stream: Stream, dropped: list[Dropped]) -> Iterator[PatchRef]:
    """Yield the references of a stream; what is dropped goes to the list."""
    for item in stream:
        if isinstance(item, Dropped):
            dropped.append(item)
        else:
            yield item


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    """Write one line of JSON for each product and reason."""
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in dropped]
    write_text(path, "".join(lines))


def read_dropped(path: Path) -> list[Dropped]:
    """Return what ``write_dropped`` wrote; nothing if there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [Dropped(**json.loads(line)) for line in file]


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


def spoken(totals: dict[str, int]) -> str:
    """Return the counts of what was left out in words; empty if nothing was."""
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
