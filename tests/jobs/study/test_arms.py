"""Arms are what a study says, each a setting of its own that a pretraining takes."""

from __future__ import annotations

import re

import pytest

from jobs.study.arms import StudyConfig, StudyName, arms_of, runs_of
from simclr.augment.parameters import NINE, preset_of
from simclr.checkpoint.manifest import config_hash

SIZES = {
    "augmentation": 40,
    "optimizer": 13,
    "rate": 6,
    "labels": 1,
    "batch_size": 5,
    "temperature": 5,
    "settings": 2,
    "published": 0,
}


def config(study, **others):
    return StudyConfig(study=StudyName(study), output="out", tasks=["x"], **others)


@pytest.mark.parametrize(("study", "size"), SIZES.items())
def test_every_arm_and_seed_is_a_different_pretraining_in_a_folder_of_its_own(study, size):
    changes = {"changes": ["loss.temperature=0.3"]} if study == "settings" else {}
    runs = runs_of(config(study, **changes))
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


def test_a_study_of_settings_has_the_settings_as_they_are_and_each_change():
    changes = [
        "loss.temperature=0.25",
        "loss.name=dcl optim.learning_rate=1e-3 data.bands=[B04,B08]",
    ]
    base, warm, dcl = runs_of(config("settings", changes=changes, seeds=[0]))
    assert [run.arm for run in (base, warm, dcl)] == ["as set", *changes]
    assert warm.config.loss.temperature == 0.25
    assert (dcl.config.loss.name.value, dcl.config.optim.learning_rate) == ("dcl", 1e-3)
    assert dcl.config.data.bands == ["B04", "B08"]
    assert len({run.config.run_dir for run in (base, warm, dcl)}) == 3
    assert not set(dcl.config.run_dir) & set("[], %")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("loss.temprature=1", "changes names loss.temprature, which is not a setting"),
        ("loss.name.x=1", "changes names loss.name.x, which is not a setting"),
        ("loss.temperature", "changes holds 'loss.temperature'; give KEY=VALUE"),
        ("data.bands=[B04", "changes holds 'data.bands=[B04', whose value cannot be read"),
        ("loss.name=dcll", "loss.name is 'dcll'; give one of"),
        ("loss.temperature=-1", "loss.temperature is -1"),
        ("seed=7", "changes holds 'seed=7'; seed is the study's"),
        ("run_dir=here", "changes holds 'run_dir=here'; run_dir is the study's"),
        ("epochs=3 epochs=4", "changes holds 'epochs=3 epochs=4', which names epochs twice"),
        (" ", "changes holds an empty text"),
        ("epochs=2.7", "changes holds 'epochs=2.7'; epochs takes type int"),
        ("epochs=1e1", "changes holds 'epochs=1e1'; epochs takes type int"),
        ("optim.learning_rate=fast", "optim.learning_rate takes type float"),
        ("model.weights=no", "model.weights takes type str"),
    ],
)
def test_a_change_that_no_pretraining_takes_is_refused(change, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        runs_of(config("settings", changes=[change]))


@pytest.mark.parametrize("other", ["loss.temperature=0.2  epochs=3", "epochs=4 model.weights=a-b"])
def test_arms_never_share_a_folder(other):
    changes = ["loss.temperature=0.2 epochs=3", "epochs=4 model.weights=a/b", other]
    with pytest.raises(ValueError, match="would share the folder"):
        runs_of(config("settings", changes=changes))


def test_a_change_may_name_one_operation():
    changes = ["augment.strengths.crop_area=0.5 +augment.probabilities.gain=0"]
    _, milder = runs_of(config("settings", changes=changes, seeds=[0]))
    assert milder.config.augment.strengths == {"crop_area": 0.5}
    assert milder.config.augment.probabilities == {"gain": 0}


def test_text_in_a_change_stays_text():
    changes = ["model.weights=2024_01_15 data.splits=[0123,train]"]
    _, changed = runs_of(config("settings", changes=changes, seeds=[0]))
    assert changed.config.model.weights == "2024_01_15"
    assert changed.config.data.splits == ["0123", "train"]


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
