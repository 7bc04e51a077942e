"""Scored rows come in; the evaluation as plain data goes out, with what it found in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simclr.checkpoint.pretrained import Pretrained
from simclr.corpus import Corpus
from simclr.evaluate.bootstrap import Blocks, Interval
from simclr.evaluate.comparison import Difference, Row, compare
from simclr.evaluate.config import EvaluateConfig
from simclr.evaluate.knn import TEMPERATURE
from simclr.evaluate.probe import PENALTIES
from simclr.evaluate.ranking import FloatArray
from simclr.evaluate.scores import SCORES
from simclr.evaluate.splits import Splits
from simclr.evaluate.task import Task

PRETRAINED = "pretrained"
MIN_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """All that was fixed before anything was scored."""

    config: EvaluateConfig
    pretrained: Pretrained
    corpus: Corpus
    task: Task
    splits: Splits
    blocks: Blocks


def summarise(setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the evaluation as plain data, ready for JSON: NaN becomes null."""
    differences = _differences(setting, rows)
    headline = SCORES[setting.task.kind][0]
    pretrained = setting.pretrained
    return {
        "simulated": setting.corpus.simulated or bool(pretrained.corpus["simulated"]),
        "run": setting.config.run,
        "checkpoint": pretrained.checkpoint.name,
        "step": pretrained.step,
        "encoder": pretrained.config.model.encoder.value,
        "bands": list(setting.corpus.bands),
        "task": _task(setting.task),
        "shards": _shards(setting),
        "split": _split(setting),
        "protocol": _protocol(setting),
        "headline": headline,
        "results": [_result(row) for row in rows],
        "differences": [_plain_difference(difference) for difference in differences],
        "findings": [_finding(each) for each in differences if each.score == headline],
        "notes": [*_limits(setting, differences), *_warnings(setting, rows)],
    }


def _differences(setting: Setting, rows: Sequence[Row]) -> list[Difference]:
    """Compare the pretrained encoder with every control under each protocol."""
    ratio = 0.0
    if setting.splits.redrawn:
        split = setting.splits.by_seed[0]
        ratio = len(split.test) / len(split.train)
    return [
        difference
        for row in rows
        for control in rows
        if row.encoder == PRETRAINED != control.encoder and row.protocol == control.protocol
        for difference in compare(row, control, setting.task.kind, ratio)
    ]


def _task(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        "positives": task.truth.sum(axis=0).tolist(),
    }


def _shards(setting: Setting) -> dict[str, Any]:
    return {
        "folder": setting.config.shards,
        "sources": list(setting.corpus.sources),
        "fingerprint": setting.corpus.fingerprint,
        "num_labelled": len(setting.task.ids),
        "num_unlabelled": setting.task.num_unlabelled,
    }


def _split(setting: Setting) -> dict[str, Any]:
    first = setting.splits.by_seed[0]
    counts = {
        "train": len(first.train),
        "validation": len(first.validation),
        "test": len(first.test),
    }
    return {
        "origin": setting.splits.origin,
        "redrawn": setting.splits.redrawn,
        "seeds": list(setting.config.seeds),
        "counts": counts,
        "num_left_out": len(setting.task.ids) - sum(counts.values()),
        "leakage": _number(setting.splits.leakage),
        "touching": _number(setting.splits.touching),
    }


def _protocol(setting: Setting) -> dict[str, Any]:
    return {
        "features": "h in evaluation mode, standardised on the training split",
        "k-NN": {"neighbours": setting.config.neighbours, "temperature": TEMPERATURE},
        "linear probe": {"penalties": list(PENALTIES), "solver": "Newton-CG"},
        "bootstrap": {
            "resamples": setting.config.bootstrap,
            "unit": setting.blocks.unit,
            "blocks": setting.blocks.count,
        },
    }


def _result(row: Row) -> dict[str, Any]:
    return {
        "encoder": row.encoder,
        "protocol": row.protocol,
        "fraction": row.fraction,
        "seeds": [trial.seed for trial in row.trials],
        "choices": [trial.choices for trial in row.trials],
        "scores": {
            name: {**_plain_interval(interval), "by_seed": _numbers(row.by_seed[name])}
            for name, interval in row.intervals.items()
        },
        "classes": {
            name: [_plain_interval(interval) for interval in intervals]
            for name, intervals in row.classes.items()
        },
    }


def _plain_difference(difference: Difference) -> dict[str, Any]:
    return {
        "control": difference.control,
        "protocol": difference.protocol,
        "fraction": difference.fraction,
        "score": difference.score,
        "over_samples": _plain_interval(difference.over_samples),
        "over_seeds": _plain_interval(difference.over_seeds),
        "p_value": difference.p_value,
        "resolved": difference.resolved,
    }


def _plain_interval(interval: Interval) -> dict[str, float | None]:
    return {
        "value": _number(interval.value),
        "low": _number(interval.low),
        "high": _number(interval.high),
    }


def _numbers(values: FloatArray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _finding(difference: Difference) -> str:
    """Say in a sentence whether the encoder is ahead of a control."""
    gap = difference.over_samples
    if not difference.resolved:
        verdict = "cannot be told from"
    else:
        verdict = "is ahead of" if gap.value > 0 else "is behind"
    ends = _points(gap)
    if not math.isnan(difference.over_seeds.low):
        ends += f", over seeds {_points(difference.over_seeds)}"
    return (
        f"{difference.protocol}: {PRETRAINED} {verdict} {difference.control}, "
        f"{difference.score.replace('_', ' ')} {100 * gap.value:+.1f} points {ends}"
    )


def _points(interval: Interval) -> str:
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _limits(setting: Setting, differences: Sequence[Difference]) -> list[str]:
    """Say which differences this test set is too small to show, and what was not compared."""
    notes = []
    headline = [each for each in differences if each.score == SCORES[setting.task.kind][0]]
    widths = [each.over_samples.high - each.over_samples.low for each in headline]
    if any(width > 0 for width in widths):
        smallest = min(width for width in widths if width > 0) / 2
        notes.append(
            f"a difference below about {100 * smallest:.1f} points to a control is beyond what "
            f"{setting.blocks.count} test blocks can show"
        )
    if any(width == 0 for width in widths):
        notes.append(
            "encoders that answer every test patch alike leave the bootstrap nothing to vary: "
            f"{300 / setting.blocks.count:.1f} points of difference stay possible (rule of three)"
        )
    if len(setting.config.seeds) < MIN_SEEDS:
        notes.append(
            f"{len(setting.config.seeds)} seed(s): how much a score moves from seed to seed stays "
            f"unknown; use {MIN_SEEDS} or more"
        )
    notes.append(
        "one pretraining run: the spread between pretraining seeds is in no interval; not compared "
        "with the same architecture trained on the labels alone, nor fine-tuned"
    )
    return notes


def _warnings(setting: Setting, rows: Sequence[Row]) -> list[str]:
    """Say what makes these figures look better, or narrower, than they are."""
    notes = [_seen(setting)]
    leakage = setting.splits.leakage
    if leakage > 0:
        notes.append(f"{100 * leakage:.1f} % of the test patches lie at a training place")
    near = setting.splits.touching
    if near > 0:
        notes.append(f"{100 * near:.1f} % of the test patches touch a training patch on the ground")
    if setting.blocks.unit == "patch":
        notes.append(
            "too few tiles or places are known to resample by; neighbouring patches count as "
            "independent, so intervals may be too narrow"
        )
    unsolved = sum(not trial.choices.get("converged", True) for row in rows for trial in row.trials)
    if unsolved:
        notes.append(f"{unsolved} of the chosen probes had not converged")
    if setting.task.num_unlabelled:
        notes.append(f"{setting.task.num_unlabelled} patches without an answer were left out")
    return [note for note in notes if note]


def _seen(setting: Setting) -> str:
    """Say whether the encoder was pretrained, without labels, on the patches of the test."""
    shared = sorted(set(setting.corpus.sources) & set(setting.pretrained.corpus["sources"]))
    if not shared:
        return ""
    tested = setting.task.given_splits[setting.splits.by_seed[0].test]
    seen = np.isin(tested, setting.pretrained.config.data.splits).mean()
    if seen == 0:
        return (
            f"pretrained on the training patches of {', '.join(shared)}, without labels; its test "
            "patches were kept out"
        )
    return (
        f"pretrained on {', '.join(shared)}, without labels, and on up to {100 * seen:.0f} % of "
        "these test patches: the scores do not speak for unseen places"
    )
