"""A finished evaluation comes in as plain data; evaluation.json and evaluation.md go out.

Every task keeps its own file in ``RUN/evaluation``; ``RUN/evaluation.json`` and ``.md`` hold them
all, so that a second task does not wipe out the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preprocess.shards.atomic import write_json, write_text
from simclr.evaluate.table import markdown, text_table

FORMAT = "simclr-s2-evaluation"
FORMAT_VERSION = 1
JSON_NAME, MARKDOWN_NAME, FOLDER_NAME = "evaluation.json", "evaluation.md", "evaluation"

Evaluation = dict[str, Any]  # as ``simclr.evaluate.summary.summarise`` builds it


def write_report(run_dir: Path, evaluation: Evaluation) -> Path:
    """Write one evaluation into a run folder, and all of that folder into evaluation.json and .md.

    Returns:
        The path of the file that holds this evaluation alone.
    """
    folder = run_dir / FOLDER_NAME
    own = own_path(run_dir, f"{evaluation['task']['name']}-{evaluation['shards']['fingerprint']}")
    write_json(own, evaluation)
    evaluations = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    ]
    write_text(run_dir / MARKDOWN_NAME, "\n".join(markdown(one) for one in evaluations))
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    write_json(run_dir / JSON_NAME, {**head, "evaluations": evaluations})
    return own


def own_path(run_dir: Path, name: str) -> Path:
    """Return the file of one evaluation: its name is ``TASK-FINGERPRINT``."""
    return run_dir / FOLDER_NAME / f"{name}.json"


def read_report(path: Path) -> list[Evaluation]:
    """Read evaluation.json: one entry for each task and set of shards.

    Raises:
        ValueError: it is not such a file, or of another format version.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    found = (data.get("format"), data.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{path} is of {found}, not {(FORMAT, FORMAT_VERSION)}; evaluate again")
    evaluations: list[Evaluation] = data["evaluations"]
    return evaluations


def report_text(path: Path) -> str:
    """Return what a terminal shows of one evaluation, from the file that holds it alone."""
    return text_table(json.loads(path.read_text(encoding="utf-8")))
