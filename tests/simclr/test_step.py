"""A step waits for nothing, and one that went wrong leaves no trace."""

import math

import pytest
import torch
from make_data import packed_arrays
from rank_jobs import small_run
from ranks import CPU
from torch.utils._python_dispatch import TorchDispatchMode

from simclr.augment import parameters
from simclr.augment.parameters import NINE
from simclr.config import (
    AugmentConfig,
    BatchNormGroup,
    EncoderName,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    Precision,
)
from simclr.distributed import distributed_context
from simclr.train import Trainer, train_step

# What must know a value on the host: item, bool, nonzero, and indexing by a mask, which counts it.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
}


class Waits(TorchDispatchMode):
    """Collects the calls that would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        masks = (
            name.startswith("aten::index") and len(args) > 1 and isinstance(args[1], list | tuple)
        )
        if name == "aten::_local_scalar_dense" and args[0].dtype is torch.int32:
            pass  # DDP's own list of used parameters, always on the host; we have no int32
        elif name in WAITING or (
            masks and any(m is not None and m.dtype is torch.bool for m in args[1])
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed_arrays(tmp_path_factory.mktemp("shards"), 64)


@pytest.fixture
def started(shards, tmp_path):
    """Return a function from changed settings to a run of one rank that is ready to step."""
    with distributed_context(CPU) as context:

        def start(**changes):
            run = Trainer(small_run(shards, tmp_path / "run", **changes), context, ())
            run.resume()
            return run

        yield start


def test_the_dispatch_mode_sees_a_host_that_waits():
    values = torch.arange(4.0)
    with Waits() as waits:
        values.sum().item()
        values[values > 1]
        if (values > 1).any():
            pass
    assert len(waits.found) >= 3


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Take the way that a GPU takes: all views at once, and no lists of them."""
    monkeypatch.setattr(parameters, "on_host", lambda device: False)


@pytest.mark.parametrize("half", list(Precision))
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_step_never_waits_for_the_device(started, half):
    augment = AugmentConfig(preset="list", operations=list(NINE), view_size_px=24)
    run = started(augment=augment, precision=half)
    train_step(run, next(run.batches))  # what happens once may wait
    batch = next(run.batches)
    with Waits() as waits:
        outcome = train_step(run, batch)
        run._metrics.add(outcome)
    assert waits.found == []


@pytest.mark.parametrize("name", list(OptimizerName))
@pytest.mark.usefixtures("as_on_a_gpu")
def test_no_optimiser_waits_for_the_device(started, name):
    augment = AugmentConfig(preset="geometric_standard")
    run = started(optim=OptimConfig(name=name, learning_rate=1e-3), augment=augment)
    train_step(run, next(run.batches))
    batch = next(run.batches)
    with Waits() as waits:
        train_step(run, batch)
    assert waits.found == []


def trained_state(run):
    """Return every tensor that a step may change."""
    tensors = dict(run.network.state_dict())
    for number, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in state.items()}
    return {name: value.clone() for name, value in tensors.items() if "tracked" not in name}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", list(OptimizerName))
def test_a_step_without_a_finite_gradient_changes_nothing(started, name, first):
    run = started(optim=OptimConfig(name=name, learning_rate=1e-3, weight_decay=0.1))
    if not first:
        train_step(run, next(run.batches))
    before = trained_state(run)
    level = run.views._level.clone()
    run.views._level.fill_(math.nan)
    outcome = train_step(run, next(run.batches))
    assert outcome.skip == 1
    after = trained_state(run)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    run.views._level.copy_(level)
    assert train_step(run, next(run.batches)).skip == 0
    moved = trained_state(run)
    assert all(value.isfinite().all() for value in moved.values())
    assert any(not torch.equal(moved[name], value) for name, value in before.items())


def losses(run, steps=2):
    return [train_step(run, next(run.batches)).loss.item() for _ in range(steps)]


def test_recomputed_blocks_give_the_same_bits(started):
    plain = started()
    other = started(model=ModelConfig(encoder=EncoderName.resnet18, activation_checkpointing=True))
    assert losses(plain) == losses(other)
    states = zip(trained_state(plain).items(), trained_state(other).items(), strict=True)
    assert [a for (a, x), (b, y) in states if a != b or not torch.equal(x, y)] == []


def test_bfloat16_stays_near_float32(started):
    larger = AugmentConfig(view_size_px=24)
    exact = losses(started(augment=larger), 1)
    half = losses(started(augment=larger, precision=Precision.bfloat16), 1)
    assert half != exact
    assert half == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("group", list(BatchNormGroup))
def test_on_one_rank_every_batchnorm_group_is_the_same(started, group):
    model = ModelConfig(encoder=EncoderName.resnet18, batchnorm=group)
    assert losses(started(model=model)) == losses(started())


@pytest.mark.slow
def test_a_compiled_network_trains_stage_by_stage_as_an_eager_one(started):
    eager = losses(started())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = started(model=ModelConfig(encoder=EncoderName.resnet18, compile=True))
    assert losses(compiled) == pytest.approx(eager, rel=1e-3)
    # A graph a stage and one of the head, so that gradients can leave before backward ends.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 5
