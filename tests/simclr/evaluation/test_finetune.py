"""A classifier learns from labels what it opens, keeps what it does not, and judges each alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from make_data import packed_arrays
from torch import nn

from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig, EncoderName, ModelConfig, Stem
from simclr.data.dataset import open_dataset
from simclr.evaluation.config import FinetuneConfig, Protocol
from simclr.evaluation.features import LabelledPatches, random_encoder
from simclr.evaluation.finetune import FineTuning, predict
from simclr.evaluation.task import open_task

CPU = torch.device("cpu")
BANDS = ["B04", "B03", "B02", "B08"]
SHORT = FinetuneConfig(epochs=4, batch_size=8, learning_rates=[3e-3], checks=2)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """All 64 labelled patches of four classes that their band means tell apart."""
    shards = packed_arrays(tmp_path_factory.mktemp("packed") / "shards", 64, native=False)
    dataset = open_dataset([str(shards)], BANDS)
    task = open_task(dataset, "labels")
    maker = ViewMaker(dataset, AugmentConfig(preset="none"), 0, CPU)
    return LabelledPatches(dataset, maker, np.arange(64), task.targets, task.kind, CPU)


@pytest.fixture(scope="module")
def encoder():
    model = ModelConfig(encoder=EncoderName.resnet18, stem=Stem.standard)
    return random_encoder(model, 4, 0, CPU)


def tuned(patches, encoder, depth=Protocol.finetune_all, config=SHORT, seed=0):
    train, validation = patches.only(np.arange(0, 40)), patches.only(np.arange(40, 52))
    return FineTuning(train, validation, config, depth, seed).fit(encoder)


def accuracy(classifier, patches, rows):
    scores = predict(classifier, patches.only(rows))
    return (scores.argmax(axis=1) == patches.targets[rows].argmax(axis=1)).mean()


@pytest.mark.slow
def test_classes_that_differ_are_learnt_and_the_encoder_is_left_as_it_was(patches, encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    longer = FinetuneConfig(epochs=12, batch_size=8, learning_rates=[3e-3], checks=3)
    classifier, choices = tuned(patches, encoder, config=longer)
    assert accuracy(classifier, patches, np.arange(52, 64)) > 0.8
    assert 0 < choices["step"] <= choices["num_steps"] == 60
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "changed"),
    [
        (Protocol.finetune_frozen, set()),
        (Protocol.finetune_last_stage, {"layer4"}),
        (Protocol.finetune_all, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_only_the_opened_parts_change_statistics_included(patches, encoder, depth, changed):
    found = tuned(patches, encoder, depth)[0].encoder.state_dict()
    moved = {
        name.split(".")[0]
        for name, value in encoder.state_dict().items()
        if not torch.equal(value, found[name])
    }
    assert moved == changed


@pytest.mark.slow
def test_an_answer_does_not_depend_on_its_batch(patches, encoder):
    found, _ = tuned(patches, encoder)
    together = predict(found, patches)
    alone = np.concatenate([predict(found, patches.only(np.array([k]))) for k in (0, 31, 63)])
    np.testing.assert_allclose(together[[0, 31, 63]], alone, atol=1e-6)
    assert not any(part.training for part in found.modules())


@pytest.mark.slow
def test_the_seed_decides_everything_and_symmetries_can_be_averaged(patches, encoder):
    first, again, other = (tuned(patches, encoder, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(predict(first, patches), predict(again, patches))
    assert not np.array_equal(predict(first, patches), predict(other, patches))
    averaged = predict(first, patches, test_time=True)
    np.testing.assert_allclose(averaged.sum(axis=1), 1, atol=1e-5)
    assert not np.array_equal(averaged, predict(first, patches))


def test_a_rate_that_diverges_costs_the_others_nothing(patches, encoder):
    either = dataclasses.replace(patches, kind="multi")
    settings = {"epochs": 2, "batch_size": 20, "checks": 2}
    config = FinetuneConfig(learning_rates=[1e30, 1e-3], **settings)
    classifier, choices = tuned(either, encoder, Protocol.finetune_frozen, config)
    assert choices["learning_rate"] == 1e-3
    assert np.isfinite(predict(classifier, either)).all()
    config = FinetuneConfig(learning_rates=[1e30], **settings)
    with pytest.raises(ValueError, match=r"diverged at every rate of finetune\.learning_rates"):
        tuned(either, encoder, Protocol.finetune_frozen, config)


def test_five_patches_are_enough_and_one_answer_is_not(patches, encoder):
    config = FinetuneConfig(epochs=1, learning_rates=[1e-3], checks=1)
    few, validation = patches.only(np.arange(5)), patches.only(np.arange(40, 44))
    assert FineTuning(few, validation, config).fit(encoder)[1]["num_steps"] == 1
    same = patches.only(np.arange(0, 40, 4))
    with pytest.raises(ValueError, match="all 10 training patches have the same labels"):
        FineTuning(same, validation, config).fit(encoder)


def test_every_patch_is_shown_once_an_epoch_in_batches_that_are_never_short(patches):
    some = patches.only(np.arange(3, 22))
    batches = list(some.shuffled(8, 5, seed=0))
    assert [epoch for epoch, *_ in batches] == [0, 0, 1, 1, 2]
    assert min(len(views) for _, _, views, _ in batches) >= 8
    for epoch in (0, 1):
        shown = torch.cat([ids for of, ids, _, _ in batches if of == epoch])
        assert sorted(shown.tolist()) == list(range(3, 22))
    ordered = list(some.in_order(8))
    for _, ids, views, truth in batches[:2]:
        torch.testing.assert_close(views, torch.cat(ordered)[ids - 3])
        np.testing.assert_array_equal(truth.numpy(), patches.targets[ids.numpy()])


def test_a_network_without_stages_can_be_trained_whole(patches):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4 * 12 * 12, 6)).eval()
    config = FinetuneConfig(epochs=1, batch_size=20, learning_rates=[1e-3], checks=1)
    assert tuned(patches, plain, config=config)[0].head.in_features == 6


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("batch_size", 1), ("learning_rates", []), ("learning_rates", [0.0])],
)
def test_a_wrong_setting_is_named(setting, value):
    with pytest.raises(ValueError, match=rf"finetune\.{setting} is"):
        FinetuneConfig(**{setting: value})
