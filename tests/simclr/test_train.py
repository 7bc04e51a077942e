"""Training as its users meet it: resumes bit for bit, stops together, says what is wrong."""

import math
import os
import random
import signal
import time
from dataclasses import fields, replace

import pytest
import torch
from make_data import packed_arrays
from rank_jobs import first_losses, order_and_draws, small_run, train_small
from ranks import CPU, results_of, run_ranks, start_ranks

from preprocess.bands import L2A_BANDS
from simclr.checkpoint.manager import newest_valid
from simclr.checkpoint.manifest import read_checkpoint_manifest, refuse_other_run
from simclr.config import (
    AugmentConfig,
    BatchNormGroup,
    CheckpointConfig,
    DataConfig,
    EncoderName,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    Positives,
    TrainConfig,
)
from simclr.data.dataset import open_dataset
from simclr.model.pretrained import load_pretrained
from simclr.monitoring.metrics import read_metrics
from simclr.preemption import Preempted, TrainerHooks
from simclr.train import train


class SignalAt:
    """A sink that sends this process SIGTERM at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, record) -> None:
        if record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


STEPS = 16  # 64 patches, half of them for training, 8 a step, 4 epochs


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed_arrays(tmp_path_factory.mktemp("shards"), 64)


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    """Run folder of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    names = run_ranks(train_small, 2, folder, small_run(shards, folder / "run"))
    assert names == ["step-000000016"] * 2
    return folder / "run"


def weights(run_dir) -> dict[str, torch.Tensor]:
    state = torch.load(newest_valid(run_dir) / "state.pt", weights_only=True)
    tensors = {**state["encoder"], **{f"head.{k}": v for k, v in state["head"].items()}}
    for number, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    return tensors


def assert_bit_equal(run_dir, other) -> None:
    left, right = weights(run_dir), weights(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def timeless(run_dir) -> list[dict]:
    varying = {"time", "patches_per_s", "data_wait_share", "tflop_per_s", "peak_memory_gib"}
    records = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in varying} for record in records]


def reached(run_dir) -> int:
    path = run_dir / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    return records[-1]["step"] if records else -1


def wait_for_step(run_dir, step: int, started) -> None:
    deadline = time.monotonic() + 600
    while reached(run_dir) < step and time.monotonic() < deadline:
        assert all(process.is_alive() for process, _ in started)
        time.sleep(0.01)
    assert reached(run_dir) >= step


@pytest.mark.parametrize("attempt", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_killed_and_restarted_run_ends_with_the_same_bits(shards, unbroken, tmp_path, attempt):
    config = small_run(shards, tmp_path / "run")
    step = 2 * random.Random(attempt).randint(2, 6)
    started = start_ranks(train_small, 2, tmp_path, config)
    wait_for_step(tmp_path / "run", step, started)
    for process, _ in started:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert 0 < int(newest_valid(tmp_path / "run").name[5:]) < STEPS
    run_ranks(train_small, 2, tmp_path, config)
    assert_bit_equal(tmp_path / "run", unbroken)
    assert timeless(tmp_path / "run") == timeless(unbroken)


@pytest.mark.exhaustive
@pytest.mark.parametrize("attempt", range(20))
def test_a_kill_at_any_of_twenty_random_moments_costs_no_bit(shards, unbroken, tmp_path, attempt):
    drawn = random.Random(100 + attempt)
    config = small_run(shards, tmp_path / "run", log_every_steps=1)
    started = start_ranks(train_small, 2, tmp_path, config)
    wait_for_step(tmp_path / "run", drawn.randint(0, STEPS - 2), started)
    time.sleep(drawn.uniform(0, 0.2))  # somewhere in a step, a collective, or a save
    for process, _ in started:
        os.kill(process.pid, signal.SIGKILL)
    for process, _ in started:
        process.join()
    assert run_ranks(train_small, 2, tmp_path, config) == ["step-000000016"] * 2
    assert_bit_equal(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_to_one_rank_stops_all_at_one_step_and_nothing_is_lost(
    shards, unbroken, tmp_path, number
):
    config = small_run(shards, tmp_path / "run")
    started = start_ranks(train_small, 2, tmp_path, config)
    wait_for_step(tmp_path / "run", 4, started)
    os.kill(started[1][0].pid, number)
    first, second = results_of(started)
    assert first == second
    stop = "SIGUSR2" if number is signal.SIGUSR2 else "SIGTERM"
    assert first.endswith(f"by {stop}")
    saved = int(newest_valid(tmp_path / "run").name[5:])
    assert first == f"stopped at {saved} by {stop}"
    run_ranks(train_small, 2, tmp_path, config)
    assert_bit_equal(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_reader_threads_and_slots_do_not_change_a_bit(shards, unbroken, tmp_path):
    data = DataConfig(global_batch_size=8, splits=["train"], num_threads=5, num_slots=6)
    run_ranks(train_small, 2, tmp_path, small_run(shards, tmp_path / "run", data=data))
    assert_bit_equal(tmp_path / "run", unbroken)


def losses_and_order(shards, folder, ranks, optim, *, double):
    model = ModelConfig(encoder=EncoderName.resnet18, batchnorm=BatchNormGroup.world)
    config = small_run(shards, folder / f"run-{ranks}-{double}", model=model, optim=optim)
    results = run_ranks(first_losses, ranks, folder, config, double)
    losses = torch.tensor([loss for loss, _ in results[0]], dtype=torch.float64)
    return losses, [[i for r in results for i in r[step][1]] for step in range(STEPS)]


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Put the shares of ranks together: all first views, then all second views."""
    halves = zip(*(part.chunk(2) for part in parts), strict=True)
    return torch.cat([share for half in halves for share in half])


@pytest.mark.slow
@pytest.mark.parametrize("positives", list(Positives))
def test_one_two_and_four_ranks_read_the_same_samples_and_draw_the_same_views(tmp_path, positives):
    shards = packed_arrays(tmp_path / "shards", 64, num_dates=2, splits=("train",))
    data = DataConfig(global_batch_size=8, positives=positives)
    config = small_run(shards, tmp_path / "run", data=data, max_steps=10)
    whole, *shared = (run_ranks(order_and_draws, ranks, tmp_path, config) for ranks in (1, 2, 4))
    join = torch.cat if positives is Positives.same else joined
    for ranks in shared:
        for (samples, drawn), *shares in zip(*whole, *ranks, strict=True):
            assert torch.equal(join([mine for mine, _ in shares]), samples)
            for field in fields(drawn):
                parts = [getattr(parameters, field.name) for _, parameters in shares]
                expected = getattr(drawn, field.name)
                if expected is None:  # what the preset never draws
                    assert parts == [None] * len(parts), field.name
                else:
                    assert torch.equal(joined(parts), expected), field.name


@pytest.mark.slow
def test_one_two_and_four_ranks_see_the_same_samples_and_losses(shards, tmp_path):
    # In float64: what separates the curves is rounding alone, however much training amplifies it.
    optim = OptimConfig(name=OptimizerName.sgd, learning_rate=1e-4)
    curves, orders = zip(
        *(losses_and_order(shards, tmp_path, n, optim, double=True) for n in (1, 2, 4)),
        strict=True,
    )
    assert orders[0] == orders[1] == orders[2]
    assert curves[0].std() > 0.01
    for curve in curves[1:]:
        torch.testing.assert_close(curve, curves[0], rtol=1e-7, atol=0)


@pytest.mark.slow
def test_losses_agree_to_float32_rounding_as_long_as_weights_hardly_move(shards, tmp_path):
    # A step of ordinary length multiplies the last bits by ten to a hundred: ReLU, max pooling and
    # BatchNorm over few pixels do that to any two orders of summation.
    optim = OptimConfig(name=OptimizerName.sgd, learning_rate=1e-8)
    curves = [losses_and_order(shards, tmp_path, n, optim, double=False)[0] for n in (1, 2, 4)]
    for curve in curves[1:]:
        torch.testing.assert_close(curve, curves[0], rtol=1e-5, atol=0)


@pytest.mark.slow
def test_a_run_learns_to_tell_patches_apart(shards, tmp_path):
    config = small_run(shards, tmp_path / "run", epochs=15)
    train(replace(config, optim=OptimConfig(learning_rate=1e-3)))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records[-1]["loss"] < 0.75 * records[0]["chance_level"]
    assert records[-1]["learning_rate"] < 1e-4
    assert records[-1]["deviation"] > 0.2


def test_a_finished_run_started_again_changes_nothing(shards, unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.glob("checkpoints/*/*")}
    config = small_run(shards, unbroken)
    assert run_ranks(train_small, 2, unbroken.parent, config) == ["step-000000016"] * 2
    assert {path: path.stat().st_mtime_ns for path in unbroken.glob("checkpoints/*/*")} == before


def test_a_limit_of_steps_ends_a_run_on_the_schedule_of_all_its_epochs(shards, tmp_path):
    run = small_run(shards, tmp_path / "run", max_steps=3, log_every_steps=1)
    train(run)
    rates = [record["learning_rate"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    cosine = [(1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(3)]
    assert rates == pytest.approx([run.optim.learning_rate * share for share in cosine])
    longer = replace(run, max_steps=4)
    assert train(longer).name == "step-000000004"


def test_the_pretrained_encoder_comes_with_its_origin(shards, unbroken):
    pretrained = load_pretrained(unbroken, torch.device("cpu"))
    assert pretrained.step == STEPS
    assert pretrained.view_size_px == 12
    assert pretrained.dataset["simulated"] is True
    assert pretrained.config == small_run(shards, unbroken)
    assert not pretrained.encoder.training
    assert set(pretrained.normalisation["arrays"]["B8A"]) == {"mean", "std"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "holds a run of other settings \\(seed: 0, now 1\\)"),
        (
            {"model": ModelConfig(encoder=EncoderName.resnet34)},
            "model.encoder: resnet18, now resnet34",
        ),
    ],
)
def test_a_run_folder_of_other_settings_is_refused(shards, unbroken, change, message):
    with pytest.raises(ValueError, match=message):
        train(small_run(shards, unbroken, **change))


def test_a_checkpoint_from_before_a_setting_existed_is_gone_on_with(shards, unbroken):
    manifest = read_checkpoint_manifest(newest_valid(unbroken))
    data = {key: value for key, value in manifest.config["data"].items() if key != "positives"}
    older = replace(manifest, config={**manifest.config, "data": data}, config_hash="0" * 16)
    fingerprint = open_dataset([str(shards)], L2A_BANDS).fingerprint
    refuse_other_run(small_run(shards, unbroken), fingerprint, older)
    seasonal = DataConfig(global_batch_size=8, splits=["train"], positives=Positives.season)
    with pytest.raises(ValueError, match="positives: same, now season"):
        refuse_other_run(small_run(shards, unbroken, data=seasonal), fingerprint, older)


def test_a_run_folder_of_other_shards_is_refused(unbroken, tmp_path):
    other = packed_arrays(tmp_path / "other", 64, seed=9)
    with pytest.raises(ValueError, match="was trained on other shards"):
        train(small_run(other, unbroken))


def test_a_run_without_a_folder_or_shards_is_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="run_dir is empty"):
        train(TrainConfig(shards=[str(shards)]))
    with pytest.raises(ValueError, match="shards is empty"):
        train(TrainConfig(run_dir=str(tmp_path / "run"), world=CPU))
    assert not (tmp_path / "run").exists()


def stopped_while_skipping(config) -> int:
    """Train until steps are skipped, ask for a stop there, and return the step that is named."""

    class Asking:
        def write(self, record):
            if record["skipped_steps"]:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted) as stopped:
        train(config, [Asking()])
    return stopped.value.step


def test_a_stop_behind_a_skipped_step_names_the_step_that_is_saved(shards, tmp_path):
    config = small_run(shards, tmp_path / "run", log_every_steps=1, max_skipped_steps=9)
    config = replace(config, optim=OptimConfig(learning_rate=1e30))  # from its second step
    saving = replace(config, checkpoint=CheckpointConfig(every_steps=1))
    assert stopped_while_skipping(saving) == int(newest_valid(tmp_path / "run").name[5:]) == 1
    # before the first checkpoint it begins again, as it would after a stop at any other step
    unsaved = replace(config, run_dir=str(tmp_path / "other"))
    assert stopped_while_skipping(replace(unsaved, checkpoint=CheckpointConfig())) == 0


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_checkpoints_alone(shards, tmp_path):
    config = small_run(shards, tmp_path / "run", optim=OptimConfig(learning_rate=1e30))
    with pytest.raises(ValueError, match=r"step 3 had no finite gradient and nothing was saved"):
        train(replace(config, max_steps=3))
    config = replace(config, checkpoint=CheckpointConfig(every_steps=1), max_skipped_steps=4)
    with pytest.raises(ValueError, match=r"no finite gradient in [45] steps one after another"):
        train(config)
    # What was saved before the trouble stays the newest: nothing behind a skipped step is saved.
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == [
        "step-000000001"
    ]


def test_a_checkpoint_that_is_due_at_skipped_steps_is_saved_after_them(shards, tmp_path, skipping):
    saved = []

    class Noting(TrainerHooks):
        step = 0

        def on_step(self, step):
            self.step = step

        def before_publish(self):
            saved.append(self.step)

    skipping(3, 4, 9, 16)
    folder = train(small_run(shards, tmp_path / "run"), hooks=Noting())
    assert saved == [5, 6, 10, 12, 15]
    assert folder.name == "step-000000015"


@pytest.mark.parametrize(("fast", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_run_of_precision_auto_keeps_what_it_began_in(
    shards, tmp_path, monkeypatch, caplog, fast, chosen
):
    caplog.set_level("WARNING", "simclr")
    larger = AugmentConfig(view_size_px=24)
    run = small_run(shards, tmp_path / "run", precision="auto", max_steps=4, augment=larger)
    monkeypatch.setattr("simclr.train.is_fast_in_bfloat16", lambda _: fast)
    with pytest.raises(Preempted):
        train(run, [SignalAt(2)])
    monkeypatch.setattr("simclr.train.is_fast_in_bfloat16", lambda _: not fast)
    folder = train(run)
    assert read_checkpoint_manifest(folder).config["precision"] == chosen
    assert f"the run began in {chosen} and keeps it" in caplog.text


def test_a_run_that_began_in_bfloat16_is_not_continued_where_that_is_wrong(
    shards, tmp_path, monkeypatch
):
    monkeypatch.setattr("simclr.train.saved_precision", lambda _: "bfloat16")  # on a GPU
    with pytest.raises(ValueError, match=r"began in bfloat16 and a view has 12 px.*on GPUs"):
        train(small_run(shards, tmp_path / "run", precision="auto", max_steps=2))


def test_the_last_asynchronous_save_is_tried_again(shards, tmp_path, monkeypatch):
    class FailingOnce(TrainerHooks):
        failures = 0

        def before_publish(self):
            self.failures += 1
            if self.failures == 1:
                raise OSError(28, "No space left on device")

    monkeypatch.setattr("simclr.train.SAVE_PAUSES_S", (0.1,))
    saving = CheckpointConfig(asynchronous=True)
    config = small_run(shards, tmp_path / "run", checkpoint=saving, max_steps=2)
    folder = train(config, hooks=FailingOnce())
    assert folder == newest_valid(tmp_path / "run") == folder.with_name("step-000000002")


def test_bfloat16_is_refused_where_torch_computes_wrong_gradients_in_it(shards, tmp_path):
    run = small_run(shards, tmp_path / "run", precision="bfloat16", max_steps=2)
    with pytest.raises(ValueError, match=r"view has 12 px.*set precision=float32 or .*=17 or more"):
        train(run)


def test_auto_takes_float32_where_bfloat16_would_be_wrong(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("simclr.train.is_fast_in_bfloat16", lambda _: True)
    folder = train(small_run(shards, tmp_path / "run", precision="auto", max_steps=1))
    assert read_checkpoint_manifest(folder).config["precision"] == "float32"
