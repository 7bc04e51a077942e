"""Arms are what a study says, each a setting of its own that a pretraining takes."""

from __future__ import annotations

import pytest

from jobs.study.arms import StudyConfig, StudyName, arms_of, runs_of
from simclr.augment.operations import NINE, preset_of
from simclr.config_io import config_hash

SIZES = {
    "augmentation": 40,
    "optimizer": 13,
    "rate": 6,
    "labels": 1,
    "batch_size": 5,
    "temperature": 5,
    "published": 0,
}


def config(study, **others):
    return StudyConfig(study=StudyName(study), output="out", tasks=["x"], **others)


@pytest.mark.parametrize(("study", "size"), SIZES.items())
def test_every_arm_and_seed_is_a_different_pretraining_in_a_folder_of_its_own(study, size):
    runs = runs_of(config(study))
    assert len(runs) == 3 * size
    assert len({run.config.run_dir for run in runs}) == len(runs)
    assert len({config_hash(run.config) for run in runs}) == len(runs)


def test_the_augmentation_study_has_every_couplet_once_and_the_four_whole_arms():
    applied = [preset_of(run.config.augment) for run in runs_of(config("augmentation"))[:40]]
    assert [preset.name for preset in applied[:4]] == ["none", "all", "geometric", "pixel"]
    couplets = {preset.operations for preset in applied[4:]}
    assert len(couplets) == 36
    assert all(len(couplet) == 2 and couplet <= set(NINE) for couplet in couplets)
    assert all(set(preset.probabilities.values()) == {1.0} for preset in applied[4:])


def test_what_is_not_varied_is_as_the_user_set_it():
    for run in runs_of(config("rate", epochs=7, seeds=[5])):
        assert (run.config.epochs, run.config.seed) == (7, 5)
        assert f"{run.config.optim.learning_rate:g}" == run.arm


def test_chosen_arms_keep_the_order_of_the_study():
    assert [*arms_of(config("augmentation", arms=["blur+gain", "none"]))] == ["none", "blur+gain"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"arms": ["blurr"]}, "arms holds blurr; study=augmentation has none, all"),
        ({"max_runs": 10}, "the arms and seeds are 120 runs, more than max_runs=10"),
        ({"seeds": [1, 1]}, "seeds is"),
        ({"run_dir": "x"}, "run_dir is x; a study names its runs"),
        ({"fractions": [0.1, 1.0]}, "several shares of the labels are study=labels"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(settings, told):
    with pytest.raises(ValueError, match=told):
        runs_of(config("augmentation", **settings))
