"""Optimisers, groups and the schedule."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simclr.config import (
    EncoderName,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    RateScaling,
    Schedule,
)
from simclr.model.simclr import build_encoder
from simclr.optim import (
    LARS,
    build_optimizer,
    learning_rate,
    parameter_groups,
    peak_rate,
    set_rate,
    step_unless,
)


def test_the_cosine_starts_at_the_peak_and_ends_next_to_zero():
    config = OptimConfig()
    shares = [learning_rate(step, 1000, 0, config) for step in range(1000)]
    assert shares[0] == 1
    assert 0 < shares[-1] < 1e-5
    assert shares == sorted(shares, reverse=True)
    assert shares[500] == pytest.approx(0.5)


def test_warm_up_rises_to_the_peak_at_its_last_step():
    config = OptimConfig()
    assert [learning_rate(step, 100, 4, config) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_a_constant_schedule_stays():
    config = OptimConfig(schedule=Schedule.constant)
    assert {learning_rate(step, 10, 0, config) for step in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [(RateScaling.none, 0.5), (RateScaling.sqrt, 1.0), (RateScaling.linear, 2.0)],
)
def test_the_peak_follows_the_global_batch_as_asked(scaling, expected):
    config = OptimConfig(learning_rate=0.5, scaling=scaling, reference_batch_size=256)
    assert peak_rate(config, 1024) == expected


def test_biases_and_norms_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decayed, kept = parameter_groups(model, 0.1)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert all(p.ndim == 1 for p in kept["params"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", list(OptimizerName))
def test_every_optimiser_lowers_a_loss(name):
    torch.manual_seed(0)
    # Without a bias: LARS does not adapt its rate, and this one is far too high for it.
    model = nn.Linear(4, 1, bias=False)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.tensor([[1.0], [2], [-1], [0.5]])
    rate = 10.0 if name is OptimizerName.lars else 0.05
    optimizer = build_optimizer(model, OptimConfig(name=name), rate)
    losses = []
    for _ in range(60):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_rate_is_set_in_every_group():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(), 1.0)
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def lars_by_definition(weight, gradient, momentum, rate, decay, adapt):
    update = gradient + decay * weight
    if adapt and weight.norm() > 0 and update.norm() > 0:
        update = update * (0.001 * weight.norm() / update.norm())
    momentum = 0.9 * momentum + update
    return weight - rate * momentum, momentum


def test_lars_equals_its_definition_tensor_by_tensor():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3, bias=False))
    nn.init.zeros_(model[1].weight)  # a zero norm must not divide
    expected = {n: (p.detach().clone(), torch.zeros_like(p)) for n, p in model.named_parameters()}
    optimizer = LARS(parameter_groups(model, 0.01), lr=0.3)
    for step in range(4):
        for number, (name, parameter) in enumerate(model.named_parameters()):
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim > 1
            expected[name] = lars_by_definition(
                *(expected[name][0], parameter.grad, expected[name][1]),
                *(0.3, 0.01 if matrix else 0.0, matrix),
            )
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name][0])


def test_lars_refuses_a_closure():
    with pytest.raises(ValueError, match="no closure"):
        LARS(parameter_groups(nn.Linear(1, 1), 0.0), lr=1.0).step(lambda: math.nan)


def test_a_cosine_of_given_length_ends_there_and_stays_at_zero():
    config = OptimConfig(decay_steps=1000)
    shares = [learning_rate(step, 15680, 0, config) for step in (0, 500, 1000, 1500, 15679)]
    assert shares == pytest.approx([1, 0.5, 0, 0, 0])


class Calls(TorchDispatchMode):
    """Collects the names of all calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_step_of_lars_takes_at_most_thirty_calls_and_no_wait():
    model = build_encoder(ModelConfig(encoder=EncoderName.resnet152), 12)
    optimizer = build_optimizer(model, OptimConfig(name=OptimizerName.lars), 0.1)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    step_unless(optimizer, torch.tensor(0.0))  # makes the momenta
    with Calls() as calls:
        step_unless(optimizer, torch.tensor(0.0))
    assert len(calls.names) <= 30, calls.names
    assert "aten::_local_scalar_dense" not in calls.names
