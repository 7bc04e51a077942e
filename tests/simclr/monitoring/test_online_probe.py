"""Held-out probes: the same on any number of ranks, and without a trace in the weights."""

import math
from dataclasses import replace

import pytest
import torch
from make_data import packed_arrays
from rank_jobs import small_run, train_small
from ranks import CPU, run_ranks

from simclr.checkpoint.manager import best
from simclr.config import MonitorConfig
from simclr.distributed import distributed_context
from simclr.monitoring.metrics import MetricsLogger, read_metrics
from simclr.monitoring.online_probe import OnlineProbe
from simclr.train import train


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed_arrays(tmp_path_factory.mktemp("shards"), 64)


def probed_run(shards, run_dir, **changes):
    monitor = MonitorConfig(shards=str(shards), task="labels", every_steps=4)
    return small_run(shards, run_dir, epochs=2, monitor=monitor, **changes)


def weights(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    return {**state["encoder"], **state["head"]}


def test_probing_is_recorded_keeps_the_best_and_changes_no_bit(shards, tmp_path):
    config = probed_run(shards, tmp_path / "probed")
    probed = weights(train(config))
    plain = replace(config, run_dir=str(tmp_path / "plain"), monitor=MonitorConfig())
    alone = weights(train(plain))
    assert all(torch.equal(probed[name], value) for name, value in alone.items())

    records = read_metrics(tmp_path / "probed" / "metrics.jsonl")
    scored = {r["step"]: r for r in records if "probe/accuracy" in r}
    assert sorted(scored) == [4, 8]
    for record in scored.values():
        assert {"knn/accuracy", "controls/random_encoder", "held_out/rank_me"} <= record.keys()
    pinned = best(tmp_path / "probed")
    assert pinned.probe == "probe/accuracy"
    assert pinned.score == max(record["probe/accuracy"] for record in scored.values())
    assert (tmp_path / "probed" / "checkpoints" / f"step-{pinned.step:09d}").is_dir()


@pytest.mark.slow
def test_ranks_share_the_probe_and_all_know_its_scores(shards, tmp_path):
    runs = {}
    for ranks in (1, 3):
        config = probed_run(shards, tmp_path / f"run-{ranks}")
        data = replace(config.data, global_batch_size=6)
        run_ranks(train_small, ranks, tmp_path, replace(config, data=data, max_steps=4))
        runs[ranks] = read_metrics(tmp_path / f"run-{ranks}" / "metrics.jsonl")[-1]
    # The controls do not depend on training, so every digit must be there.
    controls = [key for key in runs[1] if key.startswith("controls/")]
    assert controls
    assert all(runs[1][key] == pytest.approx(runs[3][key], abs=1e-6) for key in controls)


def test_only_training_and_validation_samples_are_read(shards, tmp_path):
    config = probed_run(shards, tmp_path / "run")
    with distributed_context(CPU) as context:
        probe = OnlineProbe(config, context)
        small = replace(config, monitor=replace(config.monitor, max_samples=20))
        fewer = OnlineProbe(small, context)
    assert set(probe._task.given_splits) == {"train", "validation"}
    assert len(fewer._task.ids) == 20
    assert set(fewer._task.ids) < set(probe._task.ids)


@pytest.mark.parametrize("splits", [["train"] * 78, ["validation"] * 78])
def test_a_probe_without_training_or_validation_patches_is_refused_at_the_start(tmp_path, splits):
    rest = {"train": "validation", "validation": "train"}[splits[0]]
    shards = packed_arrays(tmp_path / "shards", 320, splits=(*splits, rest, "test"))
    config = probed_run(shards, tmp_path / "run")
    few = replace(config, monitor=replace(config.monitor, max_samples=10))
    with (
        distributed_context(CPU) as context,
        pytest.raises(ValueError, match=r"monitor\.max_samples is 10, of which \d+ train and"),
    ):
        OnlineProbe(few, context)


def test_only_a_higher_score_than_all_before_is_the_best(shards, tmp_path, monkeypatch):
    place = {"step": 4, "num_steps": 8, "chance_level": 4.0}
    config = probed_run(shards, tmp_path / "run")
    (tmp_path / "run").mkdir()
    with distributed_context(CPU) as context:
        watch = MetricsLogger(config, context, 12, 0, ())
        monkeypatch.setattr(
            watch._interval,
            "close",
            lambda waited_s: dict.fromkeys(
                ("loss", "learning_rate", "patches_per_s", "deviation", "mean_cosine"), 1.0
            ),
        )
        monkeypatch.setattr(watch._probe, "controls", dict)
        verdicts = []
        for score in (0.5, 0.4, 0.5, math.nan, 0.6):
            monkeypatch.setattr(watch._probe, "score", lambda _, s=score: {watch.headline: s})
            verdicts.append(watch.report({**place, "learning_rate": 1.0}, 0.0, None))
    assert verdicts == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "labels"}, "give both or neither"),
        ({"every_steps": 0}, "monitor.every_steps is 0"),
        ({"max_samples": 3}, "needs at least 10"),
    ],
)
def test_settings_that_make_no_probe_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MonitorConfig(**changes)
