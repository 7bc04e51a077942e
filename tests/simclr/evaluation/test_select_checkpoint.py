"""Checkpoints are scored on validation patches alone; the best is named, the loss never asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from simclr.config import (
    CheckpointConfig,
    DataConfig,
    EncoderName,
    ModelConfig,
    Stem,
    TrainConfig,
    WorldConfig,
)
from simclr.evaluation import evaluate as module
from simclr.evaluation.config import EvaluateConfig, Protocol
from simclr.evaluation.evaluate import evaluate, select_checkpoint
from simclr.evaluation.features import LabelledPatches
from simclr.evaluation.report import choice_report, read_choice, read_report
from simclr.monitoring.metrics import read_metrics
from simclr.train import train


def chosen_path(config):
    noted = read_metrics(Path(config.run) / "metrics.jsonl")
    return select_checkpoint(config, {one["step"]: one["loss"] for one in noted}, progress=False)


@pytest.fixture(scope="module")
def chosen(trained_run, tmp_path_factory):
    """Settings of a choice among the checkpoints of three steps, one of them damaged; its file."""
    run = tmp_path_factory.mktemp("chosen") / "run"
    train(
        TrainConfig(
            shards=[str(trained_run.shards)],
            run_dir=str(run),
            max_steps=3,
            log_every_steps=1,
            data=DataConfig(global_batch_size=8, bands=["B04", "B03", "B02", "B08"]),
            model=ModelConfig(encoder=EncoderName.resnet18, stem=Stem.small),
            checkpoint=CheckpointConfig(every_steps=1, keep=9),
            world=WorldConfig(),
        )
    )
    (run / "checkpoints" / "step-000000002" / "state.pt").write_bytes(b"torn")
    config = EvaluateConfig(
        run=str(run),
        shards=str(trained_run.shards),
        task="labels",
        seeds=[0],
        protocols=[Protocol.probe],
        bootstrap=100,
        all_checkpoints=True,
    )
    return config, chosen_path(config)


@pytest.mark.slow
def test_the_best_by_validation_probe_is_named_and_stands_beside_loss_and_controls(chosen):
    config, path = chosen
    choice = read_choice(path)
    assert choice["steps"] == [1, 3]
    noted = {one["step"]: one["loss"] for one in read_metrics(Path(config.run) / "metrics.jsonl")}
    assert choice["losses"] == [noted[step] for step in choice["steps"]]
    probed = [one for one in choice["results"] if one["protocol"] == "linear probe"]
    scores = {one["step"]: one["scores"]["accuracy"]["value"] for one in probed if one["step"]}
    assert set(scores) == set(choice["steps"])
    assert scores[choice["best"]] == max(scores.values())
    assert {one["encoder"] for one in probed if one["step"] is None} == {
        "random encoder",
        "random convolutions",
        "image statistics",
    }
    assert f"step={choice['best']}" in choice_report(path)
    assert "step-000000002/state.pt has 4 bytes" in choice["notes"][-1]


@pytest.mark.slow
def test_no_answer_of_the_test_split_is_looked_at(chosen, monkeypatch):
    config, path = chosen
    before = read_choice(path)
    opened = module.open_task

    def swapped(*args, **options):
        task = opened(*args, **options)
        truth = task.targets.copy()
        tested = task.given_splits == "test"
        truth[tested] = truth[tested][:, ::-1]
        assert (truth != task.targets).any()
        return dataclasses.replace(task, targets=truth)

    monkeypatch.setattr(module, "open_task", swapped)
    assert read_choice(chosen_path(config)) == before


@pytest.mark.slow
def test_an_evaluation_finds_the_features_of_the_chosen_step_and_removes_what_is_gone(
    chosen, monkeypatch
):
    config, path = chosen
    [stored] = Path(config.run).glob("evaluation/features/*")
    stored.joinpath("step-000000099.npz").write_bytes(b"of a checkpoint that was pruned")

    def no_reading(*_):
        raise AssertionError("patches were read though their features are stored")

    monkeypatch.setattr(LabelledPatches, "in_order", no_reading)
    step = read_choice(path)["best"]
    tested = dataclasses.replace(config, all_checkpoints=False, step=step)
    evaluate(tested, progress=False)
    [evaluation] = read_report(Path(config.run) / "evaluation.json")
    assert evaluation["step"] == step
    kept = sorted(path.stem for path in stored.glob("step-*"))
    assert kept == ["step-000000001", "step-000000003"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"step": 4}, "step is 4 and all_checkpoints is true; leave one of them out"),
        ({"protocols": [Protocol.probe, Protocol.finetune_all]}, "protocols holds finetune_all"),
        ({"fractions": [0.1, 1.0]}, "takes one share"),
    ],
)
def test_what_makes_no_choice_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        EvaluateConfig(all_checkpoints=True, **wrong)
