"""The words of a report follow from its figures."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from make_data import edit_manifest

from simclr.distributed import DistributedContext
from simclr.evaluation import report
from simclr.evaluation.bootstrap import score_results
from simclr.evaluation.config import PRETRAINED, EvaluateConfig, Protocol
from simclr.evaluation.evaluate import evaluation_report, open_setup
from simclr.evaluation.features import FeatureCache
from simclr.evaluation.jobs import EvalResult
from simclr.evaluation.metrics import Predictions


@pytest.fixture
def setting(trained_run):
    """What an evaluation of the run on its own shards fixes before anything is scored."""
    config = EvaluateConfig(
        run=str(trained_run.folder), shards=str(trained_run.shards), task="labels", seeds=[0]
    )
    setup = open_setup(config, DistributedContext(0, 0, 1, torch.device("cpu"), "here"))
    return dataclasses.replace(setup, cache=Stored(len(setup.task.ids)))


def make_trial(setting, encoder, num_right, **choices):
    """A trial that is right on the first ``num_right`` of the 24 test patches."""
    test = setting.splits.by_seed[0].test
    truth = setting.task.targets[test]
    predicted = np.roll(truth, 1, axis=1)
    predicted[:num_right] = truth[:num_right]
    return EvalResult(
        encoder,
        Protocol.probe.value,
        0,
        test,
        truth,
        Predictions(predicted.astype(float), predicted),
        choices,
    )


def summary(setting, results):
    setting.config.bootstrap = 200
    tested = setting.splits.by_seed[0].test
    rows = score_results(results, setting.task.kind, tested, setting.blocks, 200)
    return evaluation_report(setting, rows)


class Stored(FeatureCache):
    """Features of all samples, as an evaluation would have stored them."""

    def __init__(self, num_samples):
        object.__setattr__(self, "features", np.random.default_rng(0).normal(size=(num_samples, 4)))

    def stored(self, name, num_samples):
        return self.features


def test_findings_say_ahead_behind_or_not_to_be_told_apart(setting):
    trials = [
        make_trial(setting, PRETRAINED, 16),
        make_trial(setting, "weak", 4),
        make_trial(setting, "strong", 24),
        make_trial(setting, "alike", 15),
    ]
    ahead, behind, alike = summary(setting, trials)["findings"]
    assert ahead.startswith("linear probe: pretrained is ahead of weak, accuracy +50.0 points [+")
    assert behind.startswith("linear probe: pretrained is behind strong, accuracy -33.3 points [-")
    assert alike.startswith(
        "linear probe: pretrained cannot be distinguished from alike, accuracy +4.2"
    )


def test_the_verdict_names_the_strongest_control_and_what_is_not_beaten(setting):
    def verdict(**right):
        trials = [make_trial(setting, name.replace("_", " "), n) for name, n in right.items()]
        return summary(setting, trials)["verdict"]

    beaten = verdict(pretrained=20, random_encoder=4, image_statistics=8, other_run=24)
    assert beaten.startswith(
        "Pretraining beats every control: it is ahead of image statistics, the strongest of 2 "
        "(linear probe, accuracy +50.0 points [+"
    )
    alike = verdict(pretrained=16, random_encoder=4, image_statistics=15)
    assert alike.startswith(
        "Pretraining does not beat every control: it cannot be distinguished from image statistics "
        "(linear probe, accuracy +4.2 points [-"
    )
    assert alike.endswith("; it is ahead of 1 of 2.")
    behind = verdict(pretrained=4, random_encoder=20, image_statistics=24)
    assert "it is behind image statistics (linear probe, accuracy -83.3 points [-" in behind
    assert behind.endswith("; it is ahead of 0 of 2.")
    assert verdict(pretrained=4, other_run=20).startswith("No verdict: no control was scored")


def test_a_finding_names_its_share_of_the_labels_where_not_all_had_all(setting):
    config = dataclasses.replace(setting.config, fractions=[0.1, 1.0])
    trials = [
        dataclasses.replace(make_trial(setting, encoder, num_right), fraction=fraction)
        for fraction in (0.1, 1.0)
        for encoder, num_right in ((PRETRAINED, 16), ("weak", 4))
    ]
    few, every = summary(dataclasses.replace(setting, config=config), trials)["findings"]
    assert few.startswith("linear probe, 10 % of the labels: pretrained is ahead of weak")
    assert every.startswith("linear probe, 100 % of the labels: pretrained is ahead of weak")


def test_the_report_says_which_difference_is_too_small_to_see(setting):
    trials = [make_trial(setting, PRETRAINED, 16), make_trial(setting, "other", 12)]
    result = summary(setting, trials)
    gap = result["differences"][0]["over_samples"]
    half = 50 * (gap["high"] - gap["low"])
    assert f"cannot resolve differences to a control below about {half:.1f} points" in " ".join(
        result["notes"]
    )


def test_equal_answers_are_no_proof_of_equality(setting):
    trials = [make_trial(setting, PRETRAINED, 16), make_trial(setting, "other", 16)]
    notes = " ".join(summary(setting, trials)["notes"])
    assert "12.5 points of difference stay possible" in notes


def test_whatever_flatters_the_figures_is_noted(setting):
    leaky = dataclasses.replace(
        setting,
        splits=dataclasses.replace(setting.splits, leakage=0.25),
        task=dataclasses.replace(setting.task, num_unlabelled=7),
    )
    trials = [
        make_trial(leaky, PRETRAINED, 16, converged=False),
        make_trial(leaky, "other", 12, converged=True),
    ]
    notes = " ".join(summary(leaky, trials)["notes"])
    for words in (
        "25.0 % of the test patches lie in a training cell",
        "neighbouring patches count as independent",
        "1 of the chosen probes had not converged",
        "7 patches without a label were left out",
        "1 seed: how much",
    ):
        assert words in notes


def test_what_does_not_exist_is_null_and_no_number(setting):
    unknown = dataclasses.replace(
        setting, splits=dataclasses.replace(setting.splits, leakage=float("nan"))
    )
    trials = [make_trial(unknown, PRETRAINED, 16), make_trial(unknown, "other", 12)]
    result = summary(unknown, trials)
    assert result["split"]["leakage"] is None
    assert result["differences"][0]["over_seeds"]["low"] is None  # a single seed


def test_a_command_repeats_the_patches_and_the_split(setting):
    trials = [make_trial(setting, PRETRAINED, 16), make_trial(setting, "a|b", 12)]
    data = summary(setting, trials)
    data["shards"]["folder"] = "my shards"
    assert report.command("run", data, step=3) == (
        "simclr-evaluate run=run shards='my shards' task=labels split=given seeds=[0] step=3"
    )
    data["task"]["name"], data["split"]["rule"] = "labels-balanced", "drawn"
    data["protocol"]["stages"] = True
    assert report.command("run", data) == (
        "simclr-evaluate run=run shards='my shards' task=labels balanced=true split=drawn "
        "seeds=[0] stages=true"
    )


def test_the_table_of_classes_has_one_column_for_each_encoder(setting):
    config = dataclasses.replace(setting.config, fractions=[0.1, 1.0])
    trials = [
        dataclasses.replace(make_trial(setting, encoder, num_right), fraction=fraction)
        for fraction, num_right in ((0.1, 4), (1.0, 24))
        for encoder in (PRETRAINED, "a|b")
    ]
    page = report.markdown(summary(dataclasses.replace(setting, config=config), trials))
    assert "| class | labelled patches | pretrained | a\\|b |\n|---|---|---|---|\n" in page
    assert "| field | 24 | 100.0 | 100.0 |" in page


def test_of_two_evaluations_that_end_at_once_none_is_left_out(setting, tmp_path, monkeypatch):
    one = summary(setting, [make_trial(setting, PRETRAINED, 24)])
    other = {**one, "task": {**one["task"], "name": "other"}}
    write_text = report.write_text

    def overtaken(path, text):
        """The other one ends when this one has collected what there is."""
        monkeypatch.setattr(report, "write_text", write_text)
        report.write_report(tmp_path, other)
        write_text(path, text)

    monkeypatch.setattr(report, "write_text", overtaken)
    report.write_report(tmp_path, one)
    names = [each["task"]["name"] for each in report.read_report(tmp_path / report.JSON_NAME)]
    assert names == ["labels", "other"]
    assert "other, step" in (tmp_path / report.MARKDOWN_NAME).read_text()


@pytest.mark.parametrize(
    ("patches", "pretraining", "told"),
    [
        (["L1C"], ["L2A"], True),
        (["L1C", "L2A"], ["L2A"], True),
        (["L2A"], ["L1C", "L2A"], False),
        ([""], ["L2A"], False),
        (["L1C"], [""], False),
    ],
)
def test_another_processing_level_than_in_pretraining_is_told_where_both_are_known(
    patches, pretraining, told
):
    holds, sentence = report._other_level(patches, pretraining)
    assert bool(holds) == told
    assert not told or ("L1C" in sentence and "pretrained on L2A" in sentence)


def test_stored_features_belong_to_the_statistics_they_were_normalised_with(trained_run, tmp_path):
    shards = shutil.copytree(trained_run.shards, tmp_path / "shards")
    config = EvaluateConfig(run=str(trained_run.folder), shards=str(shards), task="labels")
    context = DistributedContext(0, 0, 1, torch.device("cpu"), "here")
    before, again = (open_setup(config, context).cache.key("net") for _ in range(2))
    edit_manifest(shards, lambda data: data["statistics"]["B04"].update(mean=1.0))
    assert open_setup(config, context).cache.key("net") != before == again
