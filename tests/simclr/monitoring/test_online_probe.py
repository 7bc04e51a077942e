"""Held-out probes: the same on any number of ranks, and without a trace in the weights."""

import math
from dataclasses import replace

import pytest
import torch
from make_data import packed_arrays
from rank_jobs import failing_once, small_run, train_beside_a_stale_folder, train_small
from ranks import CPU, run_ranks

from simclr.checkpoint.manager import Best, best
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


@pytest.fixture
def numbered(monkeypatch):
    """Let a probe of n samples score n / 100, and its control half of that."""

    def score(self, _):
        return {self.headline: self._config.monitor.max_samples / 100}

    def controls(self):
        return {"controls/random_encoder": self._config.monitor.max_samples / 200}

    monkeypatch.setattr(OnlineProbe, "score", score)
    monkeypatch.setattr(OnlineProbe, "controls", controls)


@pytest.mark.usefixtures("numbered")
def test_another_probe_begins_with_its_own_controls_and_best_score(shards, tmp_path):
    many = probed_run(shards, tmp_path / "run", max_steps=4)
    few = replace(many, max_steps=8, monitor=replace(many.monitor, max_samples=20))
    train(many)
    train(few)
    controls = {
        record["step"]: record["controls/random_encoder"]
        for record in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "controls/random_encoder" in record
    }
    assert controls == {4: 20.0, 8: 0.1}
    assert best(tmp_path / "run") == Best(8, 0.2, "probe/accuracy")


@pytest.mark.usefixtures("numbered")
def test_the_same_probe_at_other_steps_keeps_its_best_score(shards, tmp_path):
    run = probed_run(shards, tmp_path / "run", max_steps=4)
    train(run)
    for _ in range(2):  # the second time from its end
        train(replace(run, max_steps=8, monitor=replace(run.monitor, every_steps=2)))
        assert best(tmp_path / "run").step == 4


@pytest.mark.usefixtures("numbered")
def test_a_best_score_that_cannot_be_pinned_at_first_is_pinned_later(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("simclr.train.SAVE_PAUSES_S", (0.1,))
    written = failing_once(monkeypatch)
    run = probed_run(shards, tmp_path / "run", max_steps=4)
    train(run)
    assert best(tmp_path / "run").step == 4
    assert len(written) == 2


@pytest.mark.usefixtures("numbered")
def test_a_kill_between_a_checkpoint_and_its_pin_does_not_lose_the_best(
    shards, tmp_path, monkeypatch
):
    class Killed(BaseException):
        """Stands for SIGKILL."""

    def die(*_):
        raise Killed

    run = probed_run(shards, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Best, "pin", die)
        with pytest.raises(Killed):
            train(run)
    train(run)
    assert best(tmp_path / "run") == Best(4, 40.0, "probe/accuracy")


@pytest.mark.usefixtures("numbered")
@pytest.mark.slow
def test_ranks_save_again_together_though_they_see_other_folders(shards, tmp_path):
    run = probed_run(shards, tmp_path / "run", max_steps=6)
    names = run_ranks(train_beside_a_stale_folder, 2, tmp_path, run)
    assert names == ["step-000000006"] * 2


def test_a_score_at_a_skipped_step_is_not_the_best(shards, tmp_path, skipping):
    config = probed_run(shards, tmp_path / "run", max_steps=6)
    skipping(4)
    train(config)
    scored = {
        r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "knn/f1_macro" in r
    }
    assert scored == {4, 6}
    assert best(tmp_path / "run").step == 6


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
