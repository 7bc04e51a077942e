"""Settings and a network become an optimiser with the right parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from simclr.choices import OptimizerName
from simclr.config import OptimConfig
from simclr.optim.lars import LARS


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices and kernels with decay; biases and norms without.

    The ``adapt`` key tells LARS to leave the second group's rate alone.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in trained if parameter.ndim > 1],
            "weight_decay": weight_decay,
            "adapt": True,
        },
        {
            "params": [parameter for parameter in trained if parameter.ndim <= 1],
            "weight_decay": 0.0,
            "adapt": False,
        },
    ]


def build_optimizer(model: nn.Module, config: OptimConfig, rate: float) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, at a peak rate.

    All of them are fused: one kernel a group, which can leave out a step on the device's word.
    """
    groups = parameter_groups(model, config.weight_decay)
    if config.name is OptimizerName.lars:
        return LARS(groups, lr=rate, momentum=config.momentum)
    if config.name is OptimizerName.sgd:
        return _sgd(groups, rate, config.momentum)
    if config.name is OptimizerName.adamw:
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    return torch.optim.Adam(groups, lr=rate, fused=True)


def _sgd(groups: list[dict[str, Any]], rate: float, momentum: float) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=True)
    if momentum:
        # torch leaves them uninitialised until the first step, which may be skipped.
        for group in optimizer.param_groups:
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_unless(optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
    """Move the weights, or leave them and all moments as they are where ``skip`` is 1.

    ``skip`` is a float32 scalar on the device of the weights; nobody waits for its value. It takes
    the way that torch made for its loss scaler.
    """
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()
