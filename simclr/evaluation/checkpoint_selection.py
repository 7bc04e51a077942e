"""All checkpoints of a run and a labelled task come in; their validation scores go out.

No answer of the test split is looked at: it shall judge what is chosen here, and could not judge
what it chose. Features of all labelled patches are kept, so that the evaluation to come finds them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preprocess.shards.atomic_io import write_json
from simclr.checkpoint.manifest import CHECKPOINTS, folder_name, verify
from simclr.checkpoint.pretrained import load_pretrained, saved_steps
from simclr.config import WorldConfig
from simclr.distributed import (
    TIMEOUT_S,
    DistributedContext,
    Rendezvous,
    distributed_context,
    from_main_rank,
    meet,
)
from simclr.evaluation.baselines import Candidate, of_checkpoint, open_candidates
from simclr.evaluation.bootstrap import BOOTSTRAP_SEED, resamples
from simclr.evaluation.comparison import Row, score_trials
from simclr.evaluation.config import SCORES, EvaluateConfig
from simclr.evaluation.evaluate import take_features, try_all
from simclr.evaluation.report import FOLDER_NAME, choice_text
from simclr.evaluation.session import Session, Setting, blocks_to_draw, open_session
from simclr.evaluation.splits import on_validation
from simclr.evaluation.summary import (
    choice_findings,
    choice_notes,
    compare_with,
    facts,
    plain_difference,
    plain_scores,
)
from simclr.evaluation.trials import PROBE
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

FORMAT = "simclr-s2-checkpoints"
FORMAT_VERSION = 1
JSON_NAME = "checkpoints.json"

# Encoders in memory at a time, each of which sees every patch of one pass.
_ENCODERS_A_PASS = 8

Choice = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """The checkpoints of a run.

    Attributes:
        steps: of the sound ones, in order.
        damaged: a sentence on each of the others.
    """

    steps: list[int]
    damaged: list[str]


def choose_checkpoint(
    config: EvaluateConfig, progress: bool = True, rendezvous: Rendezvous | None = None
) -> Path:
    """Score every checkpoint of a run on the validation split of a labelled task.

    Args:
        config: run, shards, task; ``protocols`` without fine-tuning.
        progress: draw bars on a terminal.
        rendezvous: of this process with the other ranks; None: torchrun's, or one process alone.

    Returns:
        The path of ``RUN/evaluation/TASK-FINGERPRINT/checkpoints.json``.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    with distributed_context(WorldConfig(timeout_s=TIMEOUT_S), rendezvous) as context:
        session = _without_test(open_session(config, context, progress=progress))
        setting, run_dir = session.setting, Path(config.run)
        saved = _agreed_checkpoints(run_dir, context)
        _, *others = open_candidates(config, setting.pretrained, context.device)
        take_features(session, others)
        checkpoints = _take_checkpoints(session, saved.steps)
        trials = try_all(session, [*checkpoints, *others])
        path = run_dir / FOLDER_NAME / setting.name / JSON_NAME
        if context.is_main:
            counts = resamples(setting.blocks, config.bootstrap, BOOTSTRAP_SEED)
            rows = score_trials(trials, setting.task.kind, setting.tested, counts)
            write_json(path, _summarise(setting, rows, saved, _losses(run_dir, saved.steps)))
        meet(context)
    return path


def read_choice(path: Path) -> Choice:
    """Read ``checkpoints.json``.

    Raises:
        ValueError: it is not such a file, or of another format version.
    """
    choice: Choice = json.loads(path.read_text(encoding="utf-8"))
    found = (choice.get("format"), choice.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{path} is of {found}, not {(FORMAT, FORMAT_VERSION)}; choose again")
    return choice


def choice_report(path: Path) -> str:
    """Return what a terminal shows of ``checkpoints.json``: its table, and how to go on."""
    choice = read_choice(path)
    asked = f"run={choice['run']} shards={choice['shards']['folder']} task={choice['task']['name']}"
    return f"{choice_text(choice)}\nto test it: simclr-evaluate {asked} step={choice['best']}"


def _without_test(session: Session) -> Session:
    """Return a session in which validation stands for the test split, which nothing reads."""
    setting = session.setting
    splits = on_validation(setting.task, setting.splits)
    blocks = blocks_to_draw(setting.task, splits)
    return replace(session, setting=replace(setting, splits=splits, blocks=blocks))


def _agreed_checkpoints(run_dir: Path, context: DistributedContext) -> Saved:
    """Return what rank 0 found: two ranks might see a damaged file differently."""
    text = json.dumps(_checkpoints(run_dir)) if context.is_main else ""
    return Saved(*json.loads(from_main_rank(text)))


def _checkpoints(run_dir: Path) -> tuple[list[int], list[str]]:
    sound, damaged = [], []
    for step in saved_steps(run_dir):
        try:
            verify(run_dir / CHECKPOINTS / folder_name(step))
        except ValueError as error:
            damaged.append(str(error))
        else:
            sound.append(step)
    return sound, damaged


def _take_checkpoints(session: Session, steps: Sequence[int]) -> list[Candidate]:
    """Store the features of all checkpoints, some encoders at a time; return their rows."""
    run_dir, device = Path(session.setting.config.run), session.context.device
    rows = []
    for start in range(0, len(steps), _ENCODERS_A_PASS):
        loaded = [
            of_checkpoint(f"step {step}", load_pretrained(run_dir, device, step))
            for step in steps[start : start + _ENCODERS_A_PASS]
        ]
        take_features(session, loaded)
        rows += [replace(one, embed=None) for one in loaded]
    return rows


def _losses(run_dir: Path, steps: Sequence[int]) -> list[float | None]:
    """Return the loss that the run had noted last at each step; null where it had none."""
    path = run_dir / METRICS_NAME
    records = read_metrics(path) if path.exists() else []
    noted = {record["step"]: record["loss"] for record in records}
    return [noted.get(max((at for at in noted if at <= step), default=-1)) for step in steps]


def _summarise(
    setting: Setting, rows: Sequence[Row], saved: Saved, losses: list[float | None]
) -> Choice:
    """Return the choice as plain data, ready for JSON."""
    names = {f"step {step}": step for step in saved.steps}
    headline = SCORES[setting.task.kind][0]
    asked = [row.protocol for row in rows]
    chooser = PROBE if PROBE in asked else asked[0]
    own = [row for row in rows if row.encoder in names and row.protocol == chooser]
    best = max(own, key=lambda row: _known(row.intervals[headline].value))  # of equals the earliest
    differences = [
        one
        for other in rows
        if other.protocol == chooser and other is not best
        for one in compare_with(setting, best, other)
        if one.score == headline
    ]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **facts(setting),
        "chosen_by": chooser,
        "best": names[best.encoder],
        "steps": saved.steps,
        "losses": losses,
        "results": [{**plain_scores(row), "step": names.get(row.encoder)} for row in rows],
        "differences": [plain_difference(one) for one in differences],
        "findings": choice_findings(best, own, differences),
        "notes": [*choice_notes(setting, len(own)), *saved.damaged],
    }


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value
