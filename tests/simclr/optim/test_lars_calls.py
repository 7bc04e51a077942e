"""LARS on ResNet-152 takes a bounded number of calls, and none that waits."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simclr.choices import EncoderName, OptimizerName
from simclr.config import ModelConfig, OptimConfig
from simclr.model.simclr import build_encoder
from simclr.optim import build_optimizer, step_unless


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
