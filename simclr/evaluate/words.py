"""Figures of an evaluation come in; sentences on what they show and cannot show go out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from simclr.evaluate.bootstrap import Interval
from simclr.evaluate.comparison import Difference, Row
from simclr.evaluate.config import SCORES, Protocol
from simclr.evaluate.setting import Setting

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
