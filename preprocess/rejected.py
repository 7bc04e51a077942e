"""Inputs that could not become patches: errors come in, lines of ``rejected.jsonl`` go out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from preprocess.patch import PatchError
from preprocess.shards.atomic import write_text

REJECTED_NAME = "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A patch that was left out.

    Attributes:
        id: of its reference.
        file: at fault, relative to the root of the source.
        reason: what is wrong with it.
    """

    id: str
    file: str
    reason: str


def rejection(sample: str, error: PatchError, root: Path) -> Rejected:
    """Return the line for an error; files below the root are told relative to it."""
    file = Path(error.file)
    relative = file.relative_to(root) if file.is_relative_to(root) else file
    return Rejected(sample, relative.as_posix(), error.reason)


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write one JSON object a line, whole or not at all."""
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rejected]
    write_text(path, "".join(lines))


def read_rejected(path: Path) -> tuple[Rejected, ...]:
    """Return what ``write_rejected`` wrote; nothing if there is no such file."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(Rejected(**json.loads(line)) for line in lines)
