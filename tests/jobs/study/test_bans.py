"""Bans are derived on some seeds and tested on others, and never on their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.commands.study import due, foreseen, run_study
from jobs.config import ClusterConfig, StudyConfig, StudyName
from jobs.study.analysis import Score, differences, published, tabulate
from jobs.study.bans import DERIVED, REFERENCE, Bans, bans_members, derive, judging_seeds
from jobs.study.report import pruning, write_study
from simclr.augment.operations import BANNED, preset_of
from simclr.evaluation.report import FOLDER_NAME

HERE = ClusterConfig()
FIXED = {REFERENCE, "the 27 left in 2021", "standard", "geometric_standard"}
FOUR = ["flip+blur", "flip+gain", "shift+blur", "shift+gain"]


def config(folder, **others):
    return StudyConfig(study=StudyName.bans, output=str(folder), tasks=["labels"], **others)


@pytest.fixture
def of_2021(tmp_path):
    run_study(StudyConfig(study=StudyName.published, output=str(tmp_path / "2021")), HERE)
    return str(tmp_path / "2021")


def test_one_half_of_the_seeds_sees_the_couplets_and_the_other_half_all_the_rest(tmp_path):
    members = bans_members(config(tmp_path, seeds=[0, 1, 2, 3, 4]))
    couplets = {(one.arm, one.seed) for one in members if "+" in one.arm}
    others = {(one.arm, one.seed) for one in members if "+" not in one.arm}
    assert len(couplets) == 36 * 3
    assert {seed for _, seed in couplets} == {0, 2, 4}
    assert others == {(arm, seed) for arm in FIXED for seed in (1, 3)}


def test_what_waits_for_the_couplets_is_paid_for_beforehand(tmp_path):
    some = config(tmp_path, seeds=[0, 1, 2, 3])
    now = {(one.arm, one.seed) for one in due(some)}
    later = [(one.arm, one.seed) for one in foreseen(some)]
    assert [one for one in later if one not in now] == [(DERIVED, 1), (DERIVED, 3)]


def test_the_table_of_2021_bans_what_was_banned_then(tmp_path, of_2021):
    some = config(tmp_path / "bans", seeds=[1, 2], bans_from=of_2021)
    found = derive(some)
    assert {frozenset(name.split("+")) for name in found.banned} == BANNED
    assert found.in_2021 == 9
    assert judging_seeds(some) == [1, 2]
    derived, then = (
        next(one for one in due(some) if one.arm == arm) for arm in (DERIVED, "the 27 left in 2021")
    )
    left = {frozenset(couplet) for couplet in preset_of(derived.run.augment).couplets}
    assert left == {frozenset(couplet) for couplet in preset_of(then.run.augment).couplets}
    assert not left & BANNED


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"seeds": [0, 1, 2]}, "give four or more"),
        ({"seeds": [0, 1, 2, 3], "halving": True}, "leave halving out"),
        ({"seeds": [0, 1, 2, 3], "arms": ["banned"]}, "arms holds banned"),
        ({"seeds": [0, 1, 2, 3], "max_runs": 80}, "82 runs, more than max_runs=80"),
        ({"bans_from": "nowhere"}, "bans_from is nowhere, where there is no scores.csv"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(tmp_path, settings, told):
    with pytest.raises(ValueError, match=told):
        due(config(tmp_path, **settings))


def test_seeds_that_chose_the_bans_may_not_test_them(tmp_path, of_2021):
    with pytest.raises(ValueError, match=r"derived on \[0\]; test them on others: seeds=\[1, 2, 3"):
        due(config(tmp_path, seeds=[0, 1], bans_from=of_2021))


def plant(some, score_of):
    """Leave evaluations as if the runs that are due had been scored."""
    for member in due(some):
        scores = {"accuracy": {"value": score_of(member)}}
        row = {"protocol": "linear probe", "encoder": "pretrained", "fraction": 1, "scores": scores}
        folder = Path(member.run.run_dir, FOLDER_NAME)
        folder.mkdir(parents=True, exist_ok=True)
        report = {"task": {"name": "labels"}, "results": [row]}
        (folder / "labels.json").write_text(json.dumps(report))


def test_the_same_command_derives_the_bans_and_then_tests_them(tmp_path):
    arms = [*FOUR, DERIVED]  # and the reference, which is always there
    some = config(tmp_path, arms=arms, seeds=[0, 1, 2, 3], score="accuracy")
    assert len(due(some)) == 4 * 2 + 2
    # the lowest couplet is the lowest on both seeds that decide
    plant(some, lambda one: 0.5 + 0.1 * (one.arm != "shift+blur") + 0.01 * one.seed)
    derived = [one for one in due(some) if one.arm == DERIVED]
    assert [one.seed for one in derived] == [1, 3]
    assert {Path(one.run.run_dir).parent.name for one in derived} == {"derived-bans-of-seeds-0-2"}
    assert "shift+blur" not in derived[0].run.augment.couplets
    assert len(derived[0].run.augment.couplets) == 35
    assert "nothing is known yet" in write_study(some)
    plant(some, lambda one: 0.5 + 0.1 * (one.arm == DERIVED) + 0.001 * one.seed * len(one.arm))
    said = write_study(some)
    assert "seeds 0, 2 put 1 of 4 couplets last" in said
    assert "Pruning, tested on seeds 1, 3: it helps, +0.0" in said
    assert (tmp_path / "couplets" / "heatmap.png").exists()
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert [line.partition(",labels,")[0] for line in lines[1:]] == [REFERENCE] * 2 + [DERIVED] * 2


@pytest.mark.parametrize(
    ("gains", "told"),
    [
        ((0.02, 0.03, 0.025), "it helps"),
        ((-0.02, -0.03, -0.025), "it harms"),
        ((-0.02, 0.03, 0.01), "not conclusive"),
        ((0.02,), "one seed says nothing"),
    ],
)
def test_pruning_helps_only_if_the_interval_of_the_paired_difference_says_so(gains, told):
    table = tabulate(
        Score(arm, "labels", seed, 0.5 + 0.1 * seed + gain * (arm == DERIVED))
        for seed, gain in enumerate(gains)
        for arm in (REFERENCE, DERIVED)
    )
    bans = Bans(tabulate(published()), ("flip+blur",))
    derived = differences(table, REFERENCE)[0]
    assert told in pruning(bans, derived, table.seeds, "f1")[1]
