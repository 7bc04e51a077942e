"""What only a GPU can show; ``make gpu`` runs it, and every test is skipped where there is none."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from dataclasses import fields

import pytest
import torch
from batches import sequential_batches
from make_data import packed_arrays
from rank_jobs import small_run
from torch import nn

from preprocess.bands import L2A_BANDS
from simclr.augment.parameters import PRESETS
from simclr.augment.views import ViewMaker
from simclr.config import (
    AugmentConfig,
    CheckpointConfig,
    Device,
    EncoderName,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    Precision,
    WorldConfig,
)
from simclr.data.dataset import open_dataset
from simclr.distributed import distributed_context
from simclr.model.batchnorm import GroupBatchNorm, _NativeBatchNorm
from simclr.train import Trainer, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
WORLD = WorldConfig(device=Device.cuda)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed_arrays(tmp_path_factory.mktemp("shards"), 64)


@pytest.fixture(scope="module")
def dataset(shards):
    return open_dataset([str(shards)], L2A_BANDS)


@contextmanager
def started(shards, folder, **changes):
    """A trainer on the GPU that has taken its first steps: what happens once may wait."""
    config = small_run(shards, folder / "run", world=WORLD, **changes)
    with distributed_context(config.world) as context, closing(Trainer(config, context, [])) as run:
        run.resume()
        for _ in range(2):
            train_step(run, next(run.batches))
        yield run


def batch_on(dataset, device):
    return next(iter(sequential_batches(dataset, 32, device)))


@pytest.mark.parametrize("preset", PRESETS)
def test_views_are_those_of_the_cpu(dataset, preset):
    config = AugmentConfig(preset=preset)
    here, there = (ViewMaker(dataset, config, 3, device) for device in (CPU, GPU))
    on_cpu, on_gpu = batch_on(dataset, CPU), batch_on(dataset, GPU)
    views = there.training_views(on_gpu, on_gpu.epoch)
    assert torch.isfinite(views).all()
    expected = here.training_views(on_cpu, on_cpu.epoch)
    torch.testing.assert_close(views.cpu(), expected, rtol=0, atol=1e-4)
    drawn, drawn_here = there.draw(on_gpu, on_gpu.epoch), here.draw(on_cpu, on_cpu.epoch)
    assert torch.equal(drawn.noise_window.cpu(), drawn_here.noise_window)
    for one in fields(drawn):
        value, other = getattr(drawn, one.name), getattr(drawn_here, one.name)
        if value is not None:  # logarithms and roots may differ by a unit in the last place
            torch.testing.assert_close(value.cpu(), other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_compiled_views_equal_eager_ones(dataset, preset):
    batch = batch_on(dataset, GPU)
    config = AugmentConfig(preset=preset)
    eager = ViewMaker(dataset, config, 3, GPU).training_views(batch, batch.epoch)
    compiled = ViewMaker(dataset, config, 3, GPU, compiled=True)
    views = compiled.training_views(batch, batch.epoch)
    torch.testing.assert_close(views, eager, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", list(OptimizerName))
@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_in_a_step_waits_for_the_device(shards, tmp_path, name, preset):
    optim = OptimConfig(name=name, learning_rate=1e-3)
    with started(shards, tmp_path, optim=optim, augment=AugmentConfig(preset=preset)) as run:
        batch = next(run.batches)
        try:
            torch.cuda.set_sync_debug_mode("error")
            output = train_step(run, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert output.skip.item() == 0


def test_batches_are_whole_beside_a_slow_consumer(dataset):
    def sums(device):
        found = []
        for _ in range(50):
            for batch in sequential_batches(dataset, 16, device):
                busy = torch.randn(2000, 2000, device=device)
                for _ in range(20 if device == GPU else 0):
                    busy = busy @ busy.clamp(-1, 1)
                found.append([g.view(torch.int16).long().sum() for g in batch.groups.values()])
        return [[int(value) for value in row] for row in found]

    expected = sums(CPU)
    assert len(expected) == 200
    assert sums(GPU) == expected


@pytest.mark.parametrize("shape", [(64, 16, 9, 9), (64, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_of_batchnorm_over_ranks_equal_torchs_own(shape, dtype):
    plain = nn.BatchNorm1d(16) if len(shape) == 2 else nn.BatchNorm2d(16)
    plain, ours = plain.to(GPU), GroupBatchNorm(16).to(GPU)
    values = torch.randn(shape, device=GPU, dtype=dtype)
    results = []
    for layer in (plain, ours):
        x = values.clone().requires_grad_()
        if layer is ours:
            output = _NativeBatchNorm.apply(x, layer.weight, layer.bias, layer)
        else:
            output = layer(x)
        output.float().pow(3).mean().backward()
        results.append((output, x.grad, layer.weight.grad, layer.running_var))
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-4
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def test_a_resumed_run_ends_like_an_unbroken_one(shards, tmp_path):
    def weights(folder, *stops):
        config = small_run(
            shards, folder, world=WORLD, epochs=20, checkpoint=CheckpointConfig(asynchronous=True)
        )
        for stop in stops:
            with (
                distributed_context(config.world) as context,
                closing(Trainer(config, context, [])) as run,
            ):
                run.resume()
                while run.step < stop:
                    run.observe(train_step(run, next(run.batches)))
                run.save()
                found = {k: v.cpu().clone() for k, v in run.network.state_dict().items()}
        return found

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        unbroken, again = weights(tmp_path / "a", 20), weights(tmp_path / "b", 20)
        resumed = weights(tmp_path / "c", 10, 20)
    finally:
        torch.use_deterministic_algorithms(False)
    for other in (again, resumed):
        assert [
            name for name, value in unbroken.items() if not torch.equal(value, other[name])
        ] == []


def test_a_compiled_network_trains_like_an_eager_one(shards, tmp_path):
    losses = []
    for compiled in (False, True):
        model = ModelConfig(encoder=EncoderName.resnet18, compile=compiled)
        with started(shards, tmp_path / str(compiled), model=model) as run:
            losses.append([train_step(run, next(run.batches)).loss.item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": Precision.bfloat16},
        {"model": ModelConfig(encoder=EncoderName.resnet18, activation_checkpointing=True)},
    ],
)
def test_the_ways_to_save_memory_train(shards, tmp_path, changes):
    with started(shards, tmp_path, **changes) as run:
        assert torch.isfinite(train_step(run, next(run.batches)).loss)


def test_a_step_without_a_finite_gradient_is_skipped_on_the_device(shards, tmp_path):
    with started(shards, tmp_path) as run:
        before = [weight.detach().clone() for weight in run.network.parameters()]
        run.views._level.fill_(float("nan"))
        assert train_step(run, next(run.batches)).skip.item() == 1
        pairs = zip(run.network.parameters(), before, strict=True)
        assert all(torch.equal(now, then) for now, then in pairs)


def test_the_next_batch_is_copied_while_the_gpu_computes(dataset):
    batches = iter(sequential_batches(dataset, 8, GPU))
    next(batches)
    busy = torch.randn(8000, 8000, device=GPU)
    start = time.perf_counter()
    for _ in range(20):
        busy = busy @ busy.clamp(-1, 1)
    next(batches)
    handed_out = time.perf_counter() - start
    torch.cuda.synchronize()
    assert handed_out < 0.5 * (time.perf_counter() - start)
