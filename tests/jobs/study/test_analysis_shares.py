"""What pretraining is worth at each share of the labels: found where planted, and drawn."""

import numpy as np
import pytest

from jobs.study.analysis import Score, by_share, conclude, row_name, tabulate
from jobs.study.arms import LABEL_SHARES, StudyConfig, StudyName
from jobs.study.report import conclusions

CONTROLS = ("random encoder", "image statistics")


def planted(gains, seeds=5):
    """Return scores in which pretraining gains what is given for each share, over any control."""
    dice = np.random.default_rng(0)
    scores = [
        Score(row_name(encoder, share), labels, seed, 0.5 + gain + dice.normal(0, 0.01))
        for seed in range(seeds)
        for labels in ("regular", "extended")
        for share, gains_at in gains.items()
        for encoder, gain in {"pretrained": gains_at, **dict.fromkeys(CONTROLS, 0)}.items()
    ]
    return tabulate(scores)


def test_an_advantage_at_few_labels_is_found_there_and_nowhere_else():
    found = conclude(StudyConfig(study=StudyName.labels), planted({0.01: 0.2, 1.0: 0.0}))
    clear = {one.name for one in found.against if one.excludes_zero}
    assert clear == {"random encoder, 1 %", "image statistics, 1 %"}
    assert all(0.15 < one.mean < 0.25 for one in found.against if one.name in clear)
    assert len(found.against) == 4
    (said,) = conclusions(found)
    assert said.startswith("Pretrained against the controls: significant are random encoder, 1 %")


def test_curves_hold_every_encoder_share_and_label_set():
    table = planted({0.01: 0.2, 0.25: 0.1, 1.0: 0.0})
    rows = by_share(table, "f1")
    assert len(rows) == 2 * 3 * 3
    first = rows[0]
    assert (first["protocol"], first["encoder"], first["fraction"]) == (
        "regular",
        "pretrained",
        0.01,
    )
    assert first["scores"]["f1"]["value"] == pytest.approx(table.grid[0, 0].mean())


def test_intervals_of_a_score_end_at_0_and_1_and_one_seed_has_none():
    extreme = tabulate([Score("pretrained, 1 %", "l", seed, seed / 2) for seed in range(3)])
    (row,) = by_share(extreme, "f1")
    assert row["scores"]["f1"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    (row,) = by_share(tabulate([Score("pretrained, 1 %", "l", 0, 0.5)]), "f1")
    assert np.isnan(row["scores"]["f1"]["low"])


def test_shares_are_all_of_the_labels_unless_they_are_what_is_varied():
    assert StudyConfig().shares == [1.0]
    assert StudyConfig(fractions=[0.1]).shares == [0.1]
    assert StudyConfig(study=StudyName.labels).shares == LABEL_SHARES
