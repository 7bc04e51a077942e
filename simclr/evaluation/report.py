"""The report of an evaluation: verdict, findings, limits and tables; and its files.

Each task has its own file in ``RUN/evaluation``; ``evaluation.json`` and ``.md`` hold all of them.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

from preprocess.shards.atomic_io import write_json, write_text
from simclr.evaluation.config import BALANCED, CONTROLS, Protocol

FORMAT, FORMAT_VERSION = "simclr-s2-evaluation", 1
CHOICE_FORMAT, CHOICE_FORMAT_VERSION = "simclr-s2-checkpoints", 1
JSON_NAME, MARKDOWN_NAME, FOLDER_NAME = "evaluation.json", "evaluation.md", "evaluation"
CHOICE_NAME = "checkpoints.json"
TEXT_WIDTH = 100
MIN_SEEDS = 3
_AHEAD = "is ahead of"
_NAMED = 6  # maximum of names listed in a sentence; the table has the rest
_FILES_ONLY = ("roc_auc", "calibration", "brier")  # prefixes of scores not shown on a terminal
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
Difference = dict[str, Any]  # in both: a ``simclr.evaluation.bootstrap.Difference`` as data


def conclusions(evaluation: Evaluation) -> dict[str, Any]:
    """Return ``verdict``, ``findings`` (one per comparison, primary metric) and ``notes``."""
    several = evaluation["protocol"]["fractions"] != [1.0]
    primary = [one for one in evaluation["differences"] if one["score"] == evaluation["headline"]]
    return {
        "verdict": verdict(evaluation),
        "findings": [_finding(one, several=several) for one in primary],
        "notes": _notes(evaluation, [one["over_samples"] for one in primary]),
    }


def verdict(evaluation: Evaluation) -> str:
    """Return one sentence on whether pretraining beats every control, with the closest difference.

    It uses the primary metric, the largest label fraction, and the linear probe or else the first
    protocol.
    """
    primary = [one for one in evaluation["differences"] if one["score"] == evaluation["headline"]]
    against = [one for one in primary if one["control"] in CONTROLS]
    if not against:
        return "No verdict: no control was scored beside the encoder; controls=true does."
    most = max(one["fraction"] for one in against)
    protocols = [one["protocol"] for one in against if one["fraction"] == most]
    protocol = Protocol.probe.value if Protocol.probe.value in protocols else protocols[0]
    against = [one for one in against if (one["fraction"], one["protocol"]) == (most, protocol)]
    unbeaten = [one for one in against if _state(one) != _AHEAD]
    closest = min(unbeaten or against, key=lambda one: one["over_samples"]["value"])
    control, shown = closest["control"], f"({protocol}, {_gap(closest)})"
    if not unbeaten:
        return (
            f"Pretraining beats every control: it is ahead of {control}, the strongest of "
            f"{len(against)} {shown}."
        )
    return (
        f"Pretraining does not beat every control: it {_state(closest)} {control} {shown}; it is "
        f"ahead of {len(against) - len(unbeaten)} of {len(against)}."
    )


def _finding(difference: Difference, *, several: bool = False) -> str:
    """Return a clause on an encoder against a control, with the label fraction if ``several``."""
    labels = f", {100 * difference['fraction']:g} % of the labels" if several else ""
    return (
        f"{difference['protocol']}{labels}: {difference['encoder']} {_state(difference)} "
        f"{difference['control']}, {_gap(difference)}"
    )


def _state(difference: Difference) -> str:
    if not difference["resolved"]:
        return "cannot be distinguished from"
    return _AHEAD if difference["over_samples"]["value"] > 0 else "is behind"


def _gap(difference: Difference) -> str:
    samples, seeds = difference["over_samples"], difference["over_seeds"]
    ends = "" if samples["low"] is None else f" {_points(samples)}"
    ends += "" if seeds["low"] is None else f", over seeds {_points(seeds)}"
    return f"{difference['score'].replace('_', ' ')} {100 * samples['value']:+.1f} points{ends}"


def _points(interval: dict[str, float]) -> str:
    return f"[{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def _notes(evaluation: Evaluation, gaps: list[dict[str, Any]]) -> list[str]:
    """Return sentences on the limits of these figures, and on what may flatter them."""
    protocol, split, shards = (evaluation[key] for key in ("protocol", "split", "shards"))
    num_blocks, num_seeds = protocol["bootstrap"]["blocks"], len(split["seeds"])
    halves = [(gap["high"] - gap["low"]) / 2 for gap in gaps if gap["low"] is not None]
    choices = [one for row in evaluation["results"] for one in row["choices"]]
    unsolved = sum(not one.get("converged", True) for one in choices)
    scratch = any(row["protocol"] == Protocol.finetune_all.value for row in evaluation["results"])
    return _those_that_hold(
        (
            halves,
            f"{num_blocks} test blocks cannot resolve differences to a control below about "
            f"{100 * min(halves, default=0):.1f} points",
        ),
        (
            len(halves) < len(gaps),
            "where two encoders differ alike in every resample, or not at all, the bootstrap has "
            f"nothing to vary: {300 / num_blocks:.1f} points of difference stay possible (rule of "
            "three)",
        ),
        (
            num_seeds < MIN_SEEDS,
            f"{num_seeds} seed{'s' * (num_seeds != 1)}: how much a score varies between seeds is "
            f"unknown; use {MIN_SEEDS} or more",
        ),
        (True, "one pretraining run: no interval includes the variation between pretraining seeds"),
        (not scratch, "not compared with training from scratch; finetune_all in protocols does"),
        (
            min(protocol["fractions"]) < 1,
            "penalties, thresholds and rates are chosen on the whole validation split, also where "
            "few labels are trained on",
        ),
        (protocol["stages"], "all four stages are read; an exported encoder gives the last alone"),
        (protocol["test_time"], "averaged over the 8 turns and flips of each patch"),
        (True, _seen_in_pretraining(split["seen_in_pretraining"])),
        _other_level(**evaluation["processing_level"]),
        _absent(evaluation, "train", "training", "no classifier can know them"),
        _absent(evaluation, "test", "test", "they have no score and stay out of all means"),
        *_near(evaluation, "test"),
        (unsolved, f"{unsolved} of the chosen probes had not converged"),
        (
            shards["num_surplus"],
            f"{shards['num_surplus']} patches of the commoner class were left out: these scores "
            "are higher than at the natural prevalence",
        ),
        (
            protocol["others"],
            "other encoders got these patches normalised as for the pretrained one, which may not "
            "be how they were trained",
        ),
        (
            shards["num_unlabelled"],
            f"{shards['num_unlabelled']} patches without a label were left out",
        ),
    )


def _those_that_hold(*notes: tuple[object, str]) -> list[str]:
    return [sentence for holds, sentence in notes if holds]


def _seen_in_pretraining(share: float | None) -> str:
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


def _other_level(patches: list[str], pretraining: list[str]) -> tuple[object, str]:
    """Return whether patches and pretraining differ in processing level, and a note on it."""
    given, trained = set(patches) - {""}, set(pretraining) - {""}
    return (
        trained and given - trained,
        f"the patches are {', '.join(sorted(given))}, the encoder was pretrained on "
        f"{', '.join(sorted(trained))}: reflectances of the two differ by the atmosphere",
    )


def _absent(evaluation: Evaluation, part: str, kind: str, effect: str) -> tuple[object, str]:
    """Return the classes without a patch in a part of the split, and a note on them."""
    counts = zip(evaluation["task"]["classes"], evaluation["split"]["positives"][part], strict=True)
    names = [name for name, count in counts if count == 0]
    more = f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    return names, f"classes without a {kind} patch: {', '.join(names[:_NAMED])}{more}; {effect}"


def _near(evaluation: Evaluation, scored: str) -> list[tuple[object, str]]:
    """Return notes on the proximity of the scored patches to training patches and each other."""
    leakage, touching = (evaluation["split"][key] or 0 for key in ("leakage", "touching"))
    return [
        (leakage, f"{100 * leakage:.1f} % of the {scored} patches lie in a training cell"),
        (
            touching,
            f"{100 * touching:.1f} % of the {scored} patches touch a training patch on the ground",
        ),
        (
            evaluation["protocol"]["bootstrap"]["unit"] == "patch",
            "too few tiles or ground cells are known to resample by: neighbouring patches count as "
            "independent, and intervals may be too narrow",
        ),
    ]


def choice_conclusions(choice: Choice) -> dict[str, list[str]]:
    """Return ``findings`` (best checkpoint, indistinguishable ones, controls) and ``notes``."""
    names = {one["encoder"] for one in choice["results"] if one["step"] is not None}
    controls = [one for one in choice["differences"] if one["control"] not in names]
    others = [one for one in choice["differences"] if one["control"] in names]
    alike = [one["control"] for one in others if not one["resolved"]]
    sentence = (
        f"{choice['chosen_by']} on validation: step {choice['best']} is best of {len(names)} "
        "checkpoints"
    )
    if alike:
        sentence += f", and cannot be distinguished from {len(alike)} of them"
        sentence += f": {', '.join(alike)}" if len(alike) <= _NAMED else ""
    notes = _those_that_hold(
        (
            True,
            "validation patches chose penalty and checkpoint: these scores flatter the best one; "
            "the test split was not used, and judges what was chosen here",
        ),
        (len(choice["steps"]) < 2, "one checkpoint leaves no choice; checkpoint.keep keeps more"),
        *_near(choice, "validation"),
    )
    return {"findings": [sentence, *map(_finding, controls)], "notes": notes}


def report_text(path: Path) -> str:
    """Return one evaluation as text for a terminal, read from its own file.

    Plain text of about 100 columns; scores are in percent with their 95 % intervals. Some scores
    are only in the files.
    """
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    names = evaluation["results"][0]["scores"]
    shown = [name for name in names if not name.startswith(_FILES_ONLY)]
    head = [title(evaluation), *textwrap.wrap(verdict(evaluation), TEXT_WIDTH)]
    return _text(head, _facts(evaluation), score_table(evaluation, shown), evaluation)


def choice_report(path: Path) -> str:
    """Return ``checkpoints.json`` as text for a terminal: its table, and the command to test."""
    choice = read_choice(path)
    counts, origin, seeds = (choice["split"][key] for key in ("counts", "origin", "seeds"))
    facts = [
        f"{counts['train']} training and {counts['test']} validation patches",
        f"split {origin}",
        f"seeds {', '.join(map(str, seeds))}",
    ]
    head = f"{_mark(choice)}{choice['task']['name']}, checkpoints on validation"
    text = _text([head], facts, choice_table(choice), choice)
    return f"{text}\nto test it: {command(choice['run'], choice, step=choice['best'])}"


def command(run: str | Path, data: Evaluation | Choice, **changes: object) -> str:
    """Return the command that evaluates a run on the patches, split and seeds of ``data``."""
    name, split = data["task"]["name"], data["split"]
    settings = {
        "run": shlex.quote(str(run)),
        "shards": shlex.quote(data["shards"]["folder"]),
        "task": name.removesuffix(BALANCED),
        "balanced": name.endswith(BALANCED),
        # older files have none; test patches of another split may have chosen the checkpoint
        "split": split.get("rule"),
        "seeds": f"[{','.join(map(str, split['seeds']))}]",
        **{key: data["protocol"].get(key) for key in ("stages", "test_time")},
        **changes,
    }
    texts = {key: "true" if value is True else value for key, value in settings.items() if value}
    return " ".join(["simclr-evaluate", *(f"{key}={value}" for key, value in texts.items())])


def markdown(evaluation: Evaluation, level: int = 1) -> str:
    """Return one evaluation as a Markdown section with a heading of this level."""
    blocks = [
        [f"{'#' * level} {title(evaluation)}"],
        [f"**{verdict(evaluation)}**"],
        [f"- {fact}" for fact in _facts(evaluation)],
        ["Scores in percent with 95 % intervals."],
        _piped(score_table(evaluation)),
        [f"- {finding}" for finding in evaluation["findings"]],
        ["Limits:"],
        [f"- {note}" for note in evaluation["notes"]],
        ["F1 of each class under the linear probe, without intervals: classes have few patches."],
        _piped(_class_table(evaluation)),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def title(evaluation: Evaluation) -> str:
    """Return a heading: task and step, marked if the patches are simulated."""
    return f"{_mark(evaluation)}{evaluation['task']['name']}, step {evaluation['step']}"


def _mark(data: dict[str, Any]) -> str:
    return "SIMULATED PATCHES, " if data["simulated"] else ""


def _facts(evaluation: Evaluation) -> list[str]:
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


def score_table(evaluation: Evaluation, names: list[str] | None = None) -> list[list[str]]:
    """Return header and rows of all results, with the named scores or all of them.

    Scores are in percent with their intervals.
    """
    names = list(evaluation["results"][0]["scores"]) if names is None else names
    several = {result["fraction"] for result in evaluation["results"]} != {1.0}
    rows = [["", *(_HEADINGS[name] for name in names)]]
    for result in evaluation["results"]:
        labels = f", {100 * result['fraction']:g} % of the labels" if several else ""
        cells = [_interval(result["scores"][name]) for name in names]
        rows.append([f"{result['protocol']}: {result['encoder']}{labels}", *cells])
    return rows


def choice_table(choice: Choice) -> list[list[str]]:
    """Return header and rows: one per checkpoint, then the controls.

    Scores are the primary metric in percent, with their intervals.
    """
    results, primary = choice["results"], choice["headline"]
    protocols = list(dict.fromkeys(one["protocol"] for one in results))
    scores = {
        (one["encoder"], one["protocol"]): _interval(one["scores"][primary]) for one in results
    }
    losses = dict(zip(choice["steps"], choice["losses"], strict=True))
    rows = [["", "loss", *(f"{protocol}: {_HEADINGS[primary]}" for protocol in protocols)]]
    for encoder, step in {one["encoder"]: one["step"] for one in results}.items():
        name = encoder + (" (best)" if step == choice["best"] else "")
        loss = "" if losses.get(step) is None else f"{losses[step]:.4f}"
        rows.append([name, loss, *(scores.get((encoder, each), "") for each in protocols)])
    return rows


def _class_table(evaluation: Evaluation) -> list[list[str]]:
    """Return the F1 of each class under the linear probe with the most labels, over seeds."""
    task, results = evaluation["task"], evaluation["results"]
    asked = Protocol.probe.value, max(one["fraction"] for one in results)
    probed = [one for one in results if (one["protocol"], one["fraction"]) == asked]
    rows = [["class", "labelled patches", *(one["encoder"] for one in probed)]]
    for number, name in enumerate(task["classes"]):
        scores = [_percent(one["classes"]["f1"][number]["value"]) for one in probed]
        rows.append([name, str(task["positives"][number]), *scores])
    return rows


def _interval(score: dict[str, Any]) -> str:
    value, low, high = (_percent(score[key]) for key in ("value", "low", "high"))
    return value if score["low"] is None else f"{value} [{low}, {high}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"  # a dash: the score does not exist


def _text(head: list[str], facts: list[str], rows: list[list[str]], data: dict[str, Any]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    below = _wrapped([*data["findings"], *data["notes"]])
    return "\n".join([*head, *_wrapped(facts), "", *table, "", *below]) + "\n"


def _piped(rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return [head, "|" + "---|" * len(rows[0]), *body]


def _wrapped(paragraphs: list[str]) -> list[str]:
    wrapper = textwrap.TextWrapper(TEXT_WIDTH, initial_indent="- ", subsequent_indent="  ")
    return [line for paragraph in paragraphs for line in wrapper.wrap(paragraph)]


def write_report(run_dir: Path, evaluation: Evaluation) -> None:
    """Write an evaluation into a run folder, and collect all in evaluation.json and .md."""
    name = f"{evaluation['task']['name']}-{evaluation['shards']['fingerprint']}"
    write_json(own_path(run_dir, name), evaluation)
    head, paths = {"format": FORMAT, "format_version": FORMAT_VERSION}, list[Path]()
    # again if another evaluation of the run has ended meanwhile, whose files these would replace
    while paths != (paths := sorted((run_dir / FOLDER_NAME).glob("*.json"))):
        evaluations = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        write_text(run_dir / MARKDOWN_NAME, "\n".join(markdown(one) for one in evaluations))
        write_json(run_dir / JSON_NAME, {**head, "evaluations": evaluations})


def own_path(run_dir: Path, name: str) -> Path:
    """Return the file of one evaluation; ``name`` is ``TASK-FINGERPRINT``."""
    return run_dir / FOLDER_NAME / f"{name}.json"


def read_report(path: Path) -> list[Evaluation]:
    """Read evaluation.json: one entry per task and set of shards.

    Raises:
        ValueError: the file has another format or format version.
    """
    evaluations: list[Evaluation] = _read(path, (FORMAT, FORMAT_VERSION))["evaluations"]
    return evaluations


def read_choice(path: Path) -> Choice:
    """Read ``checkpoints.json``.

    Raises:
        ValueError: the file has another format or format version.
    """
    return _read(path, (CHOICE_FORMAT, CHOICE_FORMAT_VERSION))


def _read(path: Path, wanted: tuple[str, int]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = (data.get("format"), data.get("format_version"))
    if found != wanted:
        raise ValueError(f"{path} is of {found}, not {wanted}; evaluate again")
    return data
