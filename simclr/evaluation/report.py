"""A finished evaluation comes in as plain data; evaluation.json and evaluation.md go out.

Every task keeps its own file in ``RUN/evaluation``; ``RUN/evaluation.json`` and ``.md`` hold them
all, so that a second task does not wipe out the first.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preprocess.shards.atomic_io import write_json, write_text

TEXT_WIDTH = 100

_HEADINGS = {
    "accuracy": "accuracy",
    "average_precision": "AP",
    "average_precision_micro": "AP micro",
    "average_precision_macro": "AP macro",
    "f1": "F1",
    "f1_micro": "F1 micro",
    "f1_macro": "F1 macro",
    "roc_auc": "ROC-AUC",
    "roc_auc_macro": "AUC macro",
    "average_precision_balanced": "AP balanced",
    "f1_balanced": "F1 balanced",
    "calibration_error": "ECE",
    "brier": "Brier",
}
_FILES_ONLY = ("roc_auc", "calibration", "brier")


def text_table(evaluation: dict[str, Any]) -> str:
    """Return what a terminal shows of one evaluation: plain text of about 100 columns.

    Scores are in percent, with the ends of their 95 % intervals; the rest is left to the files.
    """
    shown = [name for name in _score_names(evaluation) if not name.startswith(_FILES_ONLY)]
    lines = [title(evaluation), *_wrapped(_facts(evaluation)), ""]
    lines += _aligned(score_table(evaluation, shown))
    return (
        "\n".join([*lines, "", *_wrapped([*evaluation["findings"], *evaluation["notes"]])]) + "\n"
    )


def choice_text(choice: dict[str, Any]) -> str:
    """Return what a terminal shows of the scores of all checkpoints."""
    mark = "SIMULATED PATCHES, " if choice["simulated"] else ""
    counts = choice["split"]["counts"]
    facts = [
        f"{counts['train']} training and {counts['test']} validation patches",
        f"split {choice['split']['origin']}",
        f"seeds {', '.join(map(str, choice['split']['seeds']))}",
    ]
    lines = [f"{mark}{choice['task']['name']}, checkpoints on validation", *_wrapped(facts), ""]
    lines += [*_aligned(choice_table(choice)), ""]
    return "\n".join([*lines, *_wrapped([*choice["findings"], *choice["notes"]])]) + "\n"


def choice_table(choice: dict[str, Any]) -> list[list[str]]:
    """Return header and rows: a checkpoint each, then what stands beside them.

    Scores are in percent with the ends of their intervals; of several kinds the headline.
    """
    results, headline = choice["results"], choice["headline"]
    asked = list(dict.fromkeys(one["protocol"] for one in results))
    scores = {
        (one["encoder"], one["protocol"]): _interval(one["scores"][headline]) for one in results
    }
    losses = dict(zip(choice["steps"], choice["losses"], strict=True))
    rows = [["", "loss", *(f"{protocol}: {_HEADINGS[headline]}" for protocol in asked)]]
    for encoder, step in {one["encoder"]: one["step"] for one in results}.items():
        loss = losses.get(step)
        mark = " (best)" if step == choice["best"] else ""
        shown = "" if loss is None else f"{loss:.4f}"
        rows.append([encoder + mark, shown, *(scores.get((encoder, each), "") for each in asked)])
    return rows


def markdown(evaluation: dict[str, Any], level: int = 1) -> str:
    """Return one evaluation as a section of a page, under a heading of this level."""
    facts = [f"- {fact}" for fact in _facts(evaluation)]
    findings = [f"- {finding}" for finding in evaluation["findings"]]
    notes = [f"- {note}" for note in evaluation["notes"]]
    blocks = [
        [f"{'#' * level} {title(evaluation)}"],
        facts,
        ["Scores in percent with 95 % intervals."],
        _piped(score_table(evaluation, _score_names(evaluation))),
        findings,
        ["What these figures cannot tell:"],
        notes,
        ["F1 of each class under the linear probe, for orientation: without intervals."],
        _piped(_class_table(evaluation)),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def percent(value: float | None) -> str:
    """Return a score in percent with one decimal; a score that does not exist is a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def title(evaluation: dict[str, Any]) -> str:
    """Return a heading: task and step, and whether the patches are simulated."""
    mark = "SIMULATED PATCHES, " if evaluation["simulated"] else ""
    return f"{mark}{evaluation['task']['name']}, step {evaluation['step']}"


def _facts(evaluation: dict[str, Any]) -> list[str]:
    task, shards, split = evaluation["task"], evaluation["shards"], evaluation["split"]
    counts = ", ".join(f"{count} {name}" for name, count in split["counts"].items())
    bootstrap = evaluation["protocol"]["bootstrap"]
    return [
        f"{evaluation['encoder']} on {len(evaluation['bands'])} bands",
        f"{len(task['classes'])} classes" if len(task["classes"]) > 1 else task["classes"][0],
        f"sources {', '.join(shards['sources'])}",
        f"{shards['num_labelled']} labelled patches: {counts}",
        f"split {split['origin']}",
        f"seeds {', '.join(map(str, split['seeds']))}",
        f"intervals over {bootstrap['blocks']} test blocks of one {bootstrap['unit']}",
    ]


def _score_names(evaluation: dict[str, Any]) -> list[str]:
    return list(evaluation["results"][0]["scores"])


def score_table(evaluation: dict[str, Any], names: list[str] | None = None) -> list[list[str]]:
    """Return header and rows of all results; scores in percent with the ends of their intervals.

    Args:
        evaluation: as ``simclr.evaluation.summary.summarise`` builds it.
        names: scores to show; None shows all.
    """
    names = _score_names(evaluation) if names is None else names
    several = {result["fraction"] for result in evaluation["results"]} != {1.0}
    rows = [["", *(_HEADINGS[name] for name in names)]]
    for result in evaluation["results"]:
        cells = [_interval(result["scores"][name]) for name in names]
        labels = f", {100 * result['fraction']:g} % of the labels" if several else ""
        rows.append([f"{result['protocol']}: {result['encoder']}{labels}", *cells])
    return rows


def _interval(score: dict[str, Any]) -> str:
    return f"{percent(score['value'])} [{percent(score['low'])}, {percent(score['high'])}]"


def _class_table(evaluation: dict[str, Any]) -> list[list[str]]:
    """Return F1 of each class under the linear probe, the mean over seeds."""
    task = evaluation["task"]
    probed = [one for one in evaluation["results"] if one["protocol"] == "linear probe"]
    rows = [["class", "labelled patches", *(one["encoder"] for one in probed)]]
    for number, name in enumerate(task["classes"]):
        scores = [percent(one["classes"]["f1"][number]["value"]) for one in probed]
        rows.append([name, str(task["positives"][number]), *scores])
    return rows


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _piped(rows: list[list[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]


def _wrapped(paragraphs: Iterable[str]) -> list[str]:
    return [
        line
        for paragraph in paragraphs
        for line in textwrap.wrap(
            paragraph, TEXT_WIDTH, initial_indent="- ", subsequent_indent="  "
        )
    ]


FORMAT = "simclr-s2-evaluation"
FORMAT_VERSION = 1
JSON_NAME, MARKDOWN_NAME, FOLDER_NAME = "evaluation.json", "evaluation.md", "evaluation"

Evaluation = dict[str, Any]  # as ``simclr.evaluation.summary.summarise`` builds it


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
