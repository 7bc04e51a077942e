"""Scored rows come in; the evaluation as plain data goes out, with what it found in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from simclr.config_io import to_plain
from simclr.evaluation.bootstrap import Interval, holm
from simclr.evaluation.comparison import Difference, Row, compare
from simclr.evaluation.config import SCORES, Protocol
from simclr.evaluation.features import Features
from simclr.evaluation.metrics import FloatArray, claims, reliability
from simclr.evaluation.probes import PENALTIES, TEMPERATURE
from simclr.evaluation.session import PRETRAINED, Setting
from simclr.evaluation.splits import strata_of
from simclr.evaluation.task import Task
from simclr.evaluation.trials import Trial

MAX_POINTS = 1500  # more would cover each other
_MAP_SEED = 0


def confusion(trials: Sequence[Trial], kind: str) -> list[list[int]] | None:
    """Return counts (truth, answer) over all trials of a ``single`` task; None for other kinds."""
    if kind != "single":
        return None
    counts = sum(t.truth.T.astype(np.int64) @ t.answers.predicted for t in trials)
    return np.asarray(counts).tolist()  # type: ignore[no-any-return]


def reliability_of(trials: Sequence[Trial], kind: str) -> dict[str, list[float | None]]:
    """Return the reliability curve of the first trial: null in an empty bin."""
    first = trials[0]
    curve = reliability(claims(first.truth, first.answers.scores, kind))
    return {
        name: _numbers_of_portrait(getattr(curve, name))
        for name in ("edges", "counts", "probability", "frequency")
    }


def feature_map(setting: Setting, features: Features) -> dict[str, Any]:
    """Return test patches on the two main axes of their standardised features.

    Each patch has the number of its class, the rarest if it has several; C where it has none.
    """
    test = setting.splits.by_seed[0].test
    if len(test) > MAX_POINTS:
        drawn = np.random.default_rng(_MAP_SEED).permutation(len(test))[:MAX_POINTS]
        test = np.sort(test[drawn])
    rows = torch.from_numpy(features[test]).double()
    spread = rows.std(dim=0, correction=0)
    rows = (rows - rows.mean(dim=0)) / torch.where(spread > 0, spread, torch.inf)
    left, size, _ = torch.linalg.svd(rows, full_matrices=False)
    left = left[:, :2]
    # an axis has no sign of its own: the patch farthest out lies on its positive side
    farthest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    points = left * farthest.sign() * size[:2]
    share = size[:2].square() / size.square().sum().clamp_min(torch.finfo(size.dtype).tiny)
    return {
        "points": points.numpy().round(3).tolist(),
        "classes": _rarest(setting, test).tolist(),
        "variance": share.tolist(),
    }


def _rarest(setting: Setting, rows: Any) -> Any:
    truth = setting.task.truth
    by_rarity = np.append(np.argsort(truth.sum(axis=0), kind="stable"), truth.shape[1])
    return by_rarity[strata_of(truth, np.arange(len(truth)))[rows]]


def _numbers_of_portrait(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


MIN_SEEDS = 3
_NAMED = 6  # of a list in a sentence; the table tells the rest


def finding(difference: Difference, *, several: bool = False) -> str:
    """Say in a sentence whether the encoder is ahead of a control.

    Args:
        difference: of the two.
        several: shares of the labels were asked for, so that each sentence names its own.
    """
    gap = difference.over_samples
    if not difference.resolved:
        verdict = "cannot be told from"
    else:
        verdict = "is ahead of" if gap.value > 0 else "is behind"
    ends = _points(gap)
    if not math.isnan(difference.over_seeds.low):
        ends += f", over seeds {_points(difference.over_seeds)}"
    labels = f", {100 * difference.fraction:g} % of the labels" if several else ""
    return (
        f"{difference.protocol}{labels}: {difference.encoder} {verdict} {difference.control}, "
        f"{difference.score.replace('_', ' ')} {100 * gap.value:+.1f} points {ends}"
    )


def choice_findings(
    best: Row, checkpoints: Sequence[Row], differences: Sequence[Difference]
) -> list[str]:
    """Say which checkpoint is best on validation, and beyond which others that can be told.

    Args:
        best: the one with the highest headline.
        checkpoints: all of them under the protocol that chooses.
        differences: of the best to every other row, in the headline.
    """
    names = {row.encoder for row in checkpoints}
    rivals = [one for one in differences if one.control in names]
    alike = [one.control for one in rivals if not one.resolved]
    sentence = f"{best.protocol} on validation: {best.encoder} is best of {len(names)} checkpoints"
    if alike:
        sentence += f", and cannot be told from {len(alike)} of them"
        sentence += f": {', '.join(alike)}" if len(alike) <= _NAMED else ""
    return [sentence, *(finding(one) for one in differences if one.control not in names)]


def choice_notes(setting: Setting, num_checkpoints: int) -> list[str]:
    """Say what the scores of checkpoints are not."""
    return [
        "validation patches chose penalty and checkpoint: these scores flatter the best one; the "
        "test split was left alone, and judges what was chosen here",
        *(["one checkpoint leaves no choice; checkpoint.keep keeps more"] * (num_checkpoints < 2)),
        *_near(setting, "validation"),
    ]


def _absent(setting: Setting) -> list[str]:
    """Name the classes that some split has no patch of."""
    cost = {
        "training": "no classifier can know them",
        "test": "they have no score and stay out of all means",
    }
    notes = []
    for part, words in cost.items():
        rows = [one.train if part == "training" else one.test for one in setting.splits.by_seed]
        lacking = ~np.all([setting.task.truth[those].any(axis=0) for those in rows], axis=0)
        names = [setting.task.classes[number] for number in np.flatnonzero(lacking)]
        if names:
            more = f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
            shown = ", ".join(names[:_NAMED])
            notes.append(f"classes without a {part} patch: {shown}{more}; {words}")
    return notes


def _near(setting: Setting, split: str) -> list[str]:
    """Say how close the scored patches are to training patches, and to each other."""
    notes = []
    leakage = setting.splits.leakage
    if leakage > 0:
        notes.append(f"{100 * leakage:.1f} % of the {split} patches lie at a training place")
    near = setting.splits.touching
    if near > 0:
        notes.append(
            f"{100 * near:.1f} % of the {split} patches touch a training patch on the ground"
        )
    if setting.blocks.unit == "patch":
        notes.append(
            "too few tiles or places are known to resample by; neighbouring patches count as "
            "independent, so intervals may be too narrow"
        )
    return notes


def _points(interval: Interval) -> str:
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def limits(setting: Setting, differences: Sequence[Difference]) -> list[str]:
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
    notes.append("one pretraining run: the spread between pretraining seeds is in no interval")
    if Protocol.finetune_all not in setting.config.protocols:
        notes.append(
            "not compared with the same architecture trained on the labels alone; "
            "protocols=[...,finetune_all] does"
        )
    if min(setting.config.fractions) < 1:
        notes.append(
            "choices are made on the whole validation split, also where few labels are trained on"
        )
    return notes


def warnings(setting: Setting, rows: Sequence[Row]) -> list[str]:
    """Say what makes these figures look better, or narrower, than they are."""
    notes = [_seen(setting), *_absent(setting), *_near(setting, "test")]
    unsolved = sum(not trial.choices.get("converged", True) for row in rows for trial in row.trials)
    if unsolved:
        notes.append(f"{unsolved} of the chosen probes had not converged")
    if setting.task.num_surplus:
        notes.append(
            f"{setting.task.num_surplus} patches of the commoner answer were left out: nature is "
            "not balanced, and these scores are higher than those at natural prevalence"
        )
    if setting.config.others:
        notes.append(
            "other encoders saw these patches normalised as for the pretrained one, which may not "
            "be how they were trained"
        )
    if setting.task.num_unlabelled:
        notes.append(f"{setting.task.num_unlabelled} patches without an answer were left out")
    return [note for note in notes if note]


def _seen(setting: Setting) -> str:
    """Say whether the encoder was pretrained, without labels, on the patches of the test."""
    shared = sorted(set(setting.dataset.sources) & set(setting.pretrained.dataset["sources"]))
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
        "simulated": setting.dataset.simulated or bool(pretrained.dataset["simulated"]),
        "run": setting.config.run,
        "encoder": pretrained.config.model.encoder.value,
        "bands": list(setting.dataset.bands),
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
        "sources": list(setting.dataset.sources),
        "fingerprint": setting.dataset.fingerprint,
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
