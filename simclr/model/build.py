"""Settings and ranks come in; the same network on every rank, ready to be trained, goes out."""

from __future__ import annotations

import copy

import torch
from torch.nn.parallel import DistributedDataParallel

from simclr.choices import BatchNormGroup, Precision
from simclr.collectives import Group, average_gradients, group_of_node
from simclr.config import TrainConfig
from simclr.model.simclr import SimCLR
from simclr.world import World


def build_model(
    config: TrainConfig, num_bands: int, view_size_px: int, world: World
) -> DistributedDataParallel:
    """Return the network on every rank with equal weights, ready to average gradients."""
    node: Group = None
    if config.model.batchnorm is BatchNormGroup.node:
        node = group_of_node(world.node)
    torch.manual_seed(config.seed)
    network = SimCLR(config.model, num_bands, node).to(world.device)
    network = network.to(memory_format=torch.channels_last)
    initial = copy.deepcopy(network.state_dict())
    if config.model.compile:
        network.compile()
    model = average_gradients(network, half=config.gradient_precision is Precision.bfloat16)
    # A compiled network is compiled for a number of views; then it had better be the true one.
    pairs = config.data.global_batch_size // world.size if config.model.compile else 1
    shape = (2 * pairs, num_bands, view_size_px, view_size_px)
    with torch.autocast(
        world.device.type,
        dtype=torch.bfloat16,
        enabled=config.precision is Precision.bfloat16,
    ):
        _settle_buckets(model, shape, world.device)
    network.load_state_dict(initial)
    return model


def _settle_buckets(
    model: DistributedDataParallel, shape: tuple[int, ...], device: torch.device
) -> None:
    """Let DDP do now what it does in its first backward passes: arrange its gradient buckets.

    The arrangement decides the order of sums. Were it left to the first real step, a resumed run
    would take that step in another order than an unbroken one, and differ in the last bits.
    """
    views = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    for _ in range(2):
        _, projections = model(views)
        projections.float().sum().backward()
    model.zero_grad(set_to_none=True)
