"""Scored rows come in; the evaluation as plain data goes out, with what it found in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from simclr.evaluate.bootstrap import Interval, holm
from simclr.evaluate.comparison import Difference, Row, compare
from simclr.evaluate.config import SCORES
from simclr.evaluate.features import Features
from simclr.evaluate.knn import TEMPERATURE
from simclr.evaluate.portrait import confusion, feature_map, reliability_of
from simclr.evaluate.probe import PENALTIES
from simclr.evaluate.ranking import FloatArray
from simclr.evaluate.setting import PRETRAINED, Setting
from simclr.evaluate.task import Task
from simclr.evaluate.words import finding, limits, warnings
from simclr.settings import to_plain


def summarise(
    setting: Setting, rows: Sequence[Row], features: Features | None = None
) -> dict[str, Any]:
    """Return the evaluation as plain data, ready for JSON: NaN becomes null.

    Args:
        setting: what was fixed before.
        rows: the scored table.
        features: (N, D) of the pretrained encoder, for its map.
    """
    differences = _differences(setting, rows)
    headline = SCORES[setting.task.kind][0]
    several = set(setting.config.fractions) != {1.0}
    return {
        **facts(setting),
        "checkpoint": setting.pretrained.checkpoint.name,
        "step": setting.pretrained.step,
        "results": [_result(row, setting.task.kind) for row in rows],
        "differences": _plain_differences(differences),
        "findings": [
            finding(each, several=several) for each in differences if each.score == headline
        ],
        "notes": [*limits(setting, differences), *warnings(setting, rows)],
        "map": None if features is None else feature_map(setting, features),
    }


def facts(setting: Setting) -> dict[str, Any]:
    """Return what was asked of which run on which patches."""
    pretrained = setting.pretrained
    return {
        "simulated": setting.corpus.simulated or bool(pretrained.corpus["simulated"]),
        "run": setting.config.run,
        "encoder": pretrained.config.model.encoder.value,
        "bands": list(setting.corpus.bands),
        "task": _task(setting.task),
        "shards": _shards(setting),
        "split": _split(setting),
        "protocol": _protocol(setting),
        "headline": SCORES[setting.task.kind][0],
    }


def compare_with(setting: Setting, row: Row, other: Row) -> list[Difference]:
    """Return the paired differences of two rows, their test sets correlated as the splits are."""
    ratio = 0.0
    if setting.splits.redrawn:
        split = setting.splits.by_seed[0]
        ratio = len(split.test) / len(split.train)
    return compare(row, other, setting.task.kind, ratio)


def _differences(setting: Setting, rows: Sequence[Row]) -> list[Difference]:
    """Compare the pretrained encoder with every control under each protocol."""
    return [
        difference
        for row in rows
        for control in rows
        if row.encoder == PRETRAINED != control.encoder
        and (row.protocol, row.fraction) == (control.protocol, control.fraction)
        for difference in compare_with(setting, row, control)
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
        "fractions": sorted(setting.config.fractions),
        "test_time": setting.config.test_time,
        "fine-tune": to_plain(setting.config.finetune),
        "k-NN": {"neighbours": setting.config.neighbours, "temperature": TEMPERATURE},
        "linear probe": {"penalties": list(PENALTIES), "solver": "Newton-CG"},
        "bootstrap": {
            "resamples": setting.config.bootstrap,
            "unit": setting.blocks.unit,
            "blocks": setting.blocks.count,
        },
    }


def plain_scores(row: Row) -> dict[str, Any]:
    """Return who a row is, what was chosen for it, and its scores with intervals."""
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
    }


def _result(row: Row, kind: str) -> dict[str, Any]:
    return {
        **plain_scores(row),
        "classes": {
            name: [_plain_interval(interval) for interval in intervals]
            for name, intervals in row.classes.items()
        },
        "confusion": confusion(row.trials, kind),
        "reliability": reliability_of(row.trials, kind),
    }


def plain_difference(difference: Difference) -> dict[str, Any]:
    """Return a difference ready for JSON."""
    return {
        "encoder": difference.encoder,
        "control": difference.control,
        "protocol": difference.protocol,
        "fraction": difference.fraction,
        "score": difference.score,
        "over_samples": _plain_interval(difference.over_samples),
        "over_seeds": _plain_interval(difference.over_seeds),
        "p_value": difference.p_value,
        "resolved": difference.resolved,
    }


def _plain_differences(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Return differences as plain data; p-values also corrected for the controls of a table."""
    families: dict[tuple[str, float, str], list[int]] = {}
    for number, one in enumerate(differences):
        families.setdefault((one.protocol, one.fraction, one.score), []).append(number)
    plain = [plain_difference(difference) for difference in differences]
    for members in families.values():
        corrected = holm([differences[number].p_value for number in members])
        for number, value in zip(members, corrected, strict=True):
            plain[number]["p_holm"] = value
    return plain


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
