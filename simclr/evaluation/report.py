"""The report of an evaluation in words: findings, limits, tables; and the files that hold it.

``evaluate`` calls it with plain data and writes that; figures and studies read ``evaluation.json``.
Every task keeps its own file in ``RUN/evaluation``; ``RUN/evaluation.json`` and ``.md`` hold them
all, so that a second task does not overwrite the first.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preprocess.shards.atomic_io import write_json, write_text
from simclr.evaluation.config import CONTROLS, Protocol

FORMAT, FORMAT_VERSION = "simclr-s2-evaluation", 1
CHOICE_FORMAT, CHOICE_FORMAT_VERSION = "simclr-s2-checkpoints", 1
JSON_NAME, MARKDOWN_NAME, FOLDER_NAME = "evaluation.json", "evaluation.md", "evaluation"
CHOICE_NAME = "checkpoints.json"
TEXT_WIDTH = 100
MIN_SEEDS = 3
_NAMED = 6  # names of a list in a sentence; the table has the rest
_FILES_ONLY = ("roc_auc", "calibration", "brier")  # left out on a terminal
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

Evaluation = dict[str, Any]  # as ``evaluation_report`` builds it
Choice = dict[str, Any]  # as ``simclr.evaluation.evaluate.select_checkpoint`` builds it


def finding(difference: dict[str, Any], *, several: bool = False) -> str:
    """Return a sentence on whether the encoder is ahead of a control.

    Args:
        difference: of the two, as ``evaluation.json`` holds it.
        several: name the share of the labels.
    """
    state = "is ahead of" if difference["over_samples"]["value"] > 0 else "is behind"
    if not difference["resolved"]:
        state = "cannot be told from"
    labels = f", {100 * difference['fraction']:g} % of the labels" if several else ""
    return (
        f"{difference['protocol']}{labels}: {difference['encoder']} {state} "
        f"{difference['control']}, {_gap(difference)}"
    )


def verdict(evaluation: Evaluation) -> str:
    """Return in one sentence whether pretraining beats every control, with the closest difference.

    By the primary metric and the largest share of the labels; under the linear probe, or else the
    first protocol there is.
    """
    against = [
        one
        for one in evaluation["differences"]
        if one["score"] == evaluation["headline"] and one["control"] in CONTROLS
    ]
    if not against:
        return "No verdict: no control was scored beside the encoder; controls=true does."
    most = max(one["fraction"] for one in against)
    protocols = [one["protocol"] for one in against if one["fraction"] == most]
    probe = Protocol.probe.value
    protocol = probe if probe in protocols else protocols[0]
    against = [one for one in against if (one["fraction"], one["protocol"]) == (most, protocol)]
    beaten = [one for one in against if one["resolved"] and one["over_samples"]["value"] > 0]
    closest = min(
        (one for one in against if len(beaten) == len(against) or one not in beaten),
        key=lambda one: one["over_samples"]["value"],
    )
    shown = f"{protocol}, {_gap(closest)} over {closest['control']}"
    if len(beaten) == len(against):
        return f"Pretraining beats every control: {shown}, the strongest of {len(against)}."
    state = "is behind it" if closest["resolved"] else "cannot be told from it"
    return (
        f"Pretraining does not beat every control: {shown}, so that the encoder {state}; it is "
        f"ahead of {len(beaten)} of {len(against)}."
    )


def _gap(difference: dict[str, Any]) -> str:
    samples, seeds = difference["over_samples"], difference["over_seeds"]
    ends = "" if samples["low"] is None else f" {_points(samples)}"
    ends += "" if seeds["low"] is None else f", over seeds {_points(seeds)}"
    return f"{difference['score'].replace('_', ' ')} {100 * samples['value']:+.1f} points{ends}"


def _points(interval: dict[str, float]) -> str:
    return f"[{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def findings(evaluation: Evaluation) -> list[str]:
    """Return a sentence on every control, in the primary metric."""
    several = evaluation["protocol"]["fractions"] != [1.0]
    primary = evaluation["headline"]
    return [
        finding(one, several=several)
        for one in evaluation["differences"]
        if one["score"] == primary
    ]


def choice_findings(choice: Choice) -> list[str]:
    """Return which checkpoint is best on validation, and which others are as good."""
    names = {one["encoder"] for one in choice["results"] if one["step"] is not None}
    alike = [
        one["control"]
        for one in choice["differences"]
        if one["control"] in names and not one["resolved"]
    ]
    sentence = (
        f"{choice['chosen_by']} on validation: step {choice['best']} is best of {len(names)} "
        "checkpoints"
    )
    if alike:
        sentence += f", and cannot be told from {len(alike)} of them"
        sentence += f": {', '.join(alike)}" if len(alike) <= _NAMED else ""
    controls = [one for one in choice["differences"] if one["control"] not in names]
    return [sentence, *map(finding, controls)]


def choice_notes(choice: Choice) -> list[str]:
    """Return what the scores of checkpoints are not."""
    return [
        "validation patches chose penalty and checkpoint: these scores flatter the best one; the "
        "test split was not used, and judges what was chosen here",
        *(
            ["one checkpoint leaves no choice; checkpoint.keep keeps more"]
            * (len(choice["steps"]) < 2)
        ),
        *_near(choice, "validation"),
    ]


def notes(evaluation: Evaluation) -> list[str]:
    """Return what these figures cannot show, and what makes them look better than they are."""
    num_blocks = evaluation["protocol"]["bootstrap"]["blocks"]
    primary, seeds = evaluation["headline"], evaluation["split"]["seeds"]
    gaps = [one["over_samples"] for one in evaluation["differences"] if one["score"] == primary]
    halves = [(gap["high"] - gap["low"]) / 2 for gap in gaps if gap["low"] is not None]
    sentences = []
    if halves:
        sentences.append(
            f"{num_blocks} test blocks cannot resolve differences to a control below about "
            f"{100 * min(halves):.1f} points"
        )
    if len(halves) < len(gaps):
        sentences.append(
            "where two encoders differ alike in every resample, or not at all, the bootstrap has "
            f"nothing to vary: {300 / num_blocks:.1f} points of difference stay possible (rule of "
            "three)"
        )
    if len(seeds) < MIN_SEEDS:
        sentences.append(
            f"{len(seeds)} seed(s): how much a score varies between seeds is unknown; use "
            f"{MIN_SEEDS} or more"
        )
    sentences.append(
        "one pretraining run: no interval includes the variation between pretraining seeds"
    )
    if Protocol.finetune_all.value not in {one["protocol"] for one in evaluation["results"]}:
        sentences.append(
            "not compared with the same architecture trained on the labels alone; "
            "protocols=[...,finetune_all] does"
        )
    if min(evaluation["protocol"]["fractions"]) < 1:
        sentences.append(
            "penalties, thresholds and rates are chosen on the whole validation split, also where "
            "few labels are trained on"
        )
    return [
        *sentences,
        _seen(evaluation),
        *_absent(evaluation),
        *_near(evaluation, "test"),
        *_others(evaluation),
    ]


def _seen(evaluation: Evaluation) -> str:
    share = evaluation["split"]["seen_in_pretraining"]
    if share is None:
        return (
            "it is unknown whether the encoder was pretrained on these test patches: its training "
            "shards cannot be read as they were, or hold equal ids with other pixels"
        )
    if share == 0:
        return "pretrained on none of these test patches, compared by pixels and by id"
    return (
        f"pretrained on {100 * share:.3g} % of these test patches, without labels: the scores do "
        "not hold for unseen places"
    )


def _absent(evaluation: Evaluation) -> list[str]:
    """Return which classes have no training or no test patch."""
    sentences = []
    for part, effect in (
        ("train", "no classifier can know them"),
        ("test", "they have no score and stay out of all means"),
    ):
        counts = evaluation["split"]["positives"][part]
        names = [
            name
            for name, count in zip(evaluation["task"]["classes"], counts, strict=True)
            if count == 0
        ]
        if names:
            more = f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
            what = {"train": "training", "test": "test"}[part]
            shown = ", ".join(names[:_NAMED])
            sentences.append(f"classes without a {what} patch: {shown}{more}; {effect}")
    return sentences


def _near(evaluation: Evaluation, scored: str) -> list[str]:
    """Return how close the scored patches are to training patches, and to each other."""
    split, sentences = evaluation["split"], []
    if split["leakage"]:
        sentences.append(
            f"{100 * split['leakage']:.1f} % of the {scored} patches lie in a training cell"
        )
    if split["touching"]:
        sentences.append(
            f"{100 * split['touching']:.1f} % of the {scored} patches touch a training patch on "
            "the ground"
        )
    if evaluation["protocol"]["bootstrap"]["unit"] == "patch":
        sentences.append(
            "too few tiles or ground cells are known to resample by: neighbouring patches count as "
            "independent, and intervals may be too narrow"
        )
    return sentences


def _others(evaluation: Evaluation) -> list[str]:
    choices = [one for row in evaluation["results"] for one in row["choices"]]
    unsolved = sum(not one.get("converged", True) for one in choices)
    surplus, unlabelled = (evaluation["shards"][key] for key in ("num_surplus", "num_unlabelled"))
    return [
        sentence
        for known, sentence in (
            (unsolved, f"{unsolved} of the chosen probes had not converged"),
            (
                surplus,
                f"{surplus} patches of the commoner class were left out: these scores are higher "
                "than at the natural prevalence",
            ),
            (
                evaluation["protocol"]["others"],
                "other encoders got these patches normalised as for the pretrained one, which may "
                "not be how they were trained",
            ),
            (unlabelled, f"{unlabelled} patches without a label were left out"),
        )
        if known
    ]


def text_table(evaluation: dict[str, Any]) -> str:
    """Return what a terminal shows of one evaluation: plain text of about 100 columns.

    Scores are in percent, with the ends of their 95 % intervals; the rest is left to the files.
    """
    shown = [name for name in _score_names(evaluation) if not name.startswith(_FILES_ONLY)]
    lines = [title(evaluation), *textwrap.wrap(verdict(evaluation), TEXT_WIDTH)]
    lines += [*_wrapped(_facts(evaluation)), ""]
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
    """Return header and rows: a checkpoint each, then the controls.

    Scores are the primary metric in percent, with the ends of their intervals.
    """
    results, primary = choice["results"], choice["headline"]
    protocols = list(dict.fromkeys(one["protocol"] for one in results))
    scores = {
        (one["encoder"], one["protocol"]): _interval(one["scores"][primary]) for one in results
    }
    losses = dict(zip(choice["steps"], choice["losses"], strict=True))
    rows = [["", "loss", *(f"{protocol}: {_HEADINGS[primary]}" for protocol in protocols)]]
    for encoder, step in {one["encoder"]: one["step"] for one in results}.items():
        loss = losses.get(step)
        mark = " (best)" if step == choice["best"] else ""
        shown = "" if loss is None else f"{loss:.4f}"
        rows.append(
            [encoder + mark, shown, *(scores.get((encoder, each), "") for each in protocols)]
        )
    return rows


def markdown(evaluation: dict[str, Any], level: int = 1) -> str:
    """Return one evaluation as a section of a page, under a heading of this level."""
    facts = [f"- {fact}" for fact in _facts(evaluation)]
    findings = [f"- {finding}" for finding in evaluation["findings"]]
    notes = [f"- {note}" for note in evaluation["notes"]]
    blocks = [
        [f"{'#' * level} {title(evaluation)}"],
        [f"**{verdict(evaluation)}**"],
        facts,
        ["Scores in percent with 95 % intervals."],
        _piped(score_table(evaluation, _score_names(evaluation))),
        findings,
        ["Limits:"],
        notes,
        ["F1 of each class under the linear probe, without intervals: classes have few patches."],
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
        evaluation: as ``evaluation.json`` holds it.
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
    if score["low"] is None:
        return percent(score["value"])
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


def read_choice(path: Path) -> Choice:
    """Read ``checkpoints.json``.

    Raises:
        ValueError: it is not such a file, or of another format version.
    """
    choice: Choice = json.loads(path.read_text(encoding="utf-8"))
    found, wanted = (
        (choice.get("format"), choice.get("format_version")),
        (CHOICE_FORMAT, CHOICE_FORMAT_VERSION),
    )
    if found != wanted:
        raise ValueError(f"{path} is of {found}, not {wanted}; choose again")
    return choice


def choice_report(path: Path) -> str:
    """Return what a terminal shows of ``checkpoints.json``: its table, and how to go on."""
    choice = read_choice(path)
    options = (
        f"run={choice['run']} shards={choice['shards']['folder']} task={choice['task']['name']}"
    )
    return f"{choice_text(choice)}\nto test it: simclr-evaluate {options} step={choice['best']}"
