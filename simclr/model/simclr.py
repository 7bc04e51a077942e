"""The SimCLR network, and its replica on each rank, ready for training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet
from torchvision.models.feature_extraction import create_feature_extractor

from simclr.config import BatchNormGroup, HeadName, ModelConfig, Precision, Stem, TrainConfig
from simclr.distributed import DistributedContext, Group, average_gradients, group_of_node
from simclr.model.batchnorm import frozen_statistics, join_statistics

_STAGES = ("layer1", "layer2", "layer3", "layer4")
WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}


def build_encoder(config: ModelConfig, num_bands: int) -> nn.Module:
    """Build an untrained encoder with output h (B, width) float32.

    Parameter names are torchvision's, so that weights load into a plain
    ``torchvision.models.resnet50()`` with a first layer of ``num_bands`` channels and ``fc`` set
    to ``nn.Identity()``. Initialisation uses torch's global generator.
    """
    encoder: nn.Module = getattr(resnet, config.encoder.value)(weights=None)
    if config.stem is Stem.small:
        first = nn.Conv2d(num_bands, 64, kernel_size=3, stride=1, padding=1, bias=False)
        encoder.maxpool = nn.Identity()
    else:
        first = nn.Conv2d(num_bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    encoder.conv1 = first
    encoder.fc = nn.Identity()
    return encoder


def joined_stages(encoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a network that concatenates the pooled outputs of a ResNet's four stages.

    Maps views (B, C, S, S) to (B, D1 + D2 + D3 + D4); the last D4 are h. Anything without a ResNet
    is returned unchanged.
    """
    parts = encoder.named_modules() if isinstance(encoder, nn.Module) else []
    paths = [path for path, part in parts if isinstance(part, resnet.ResNet)]
    if not paths:
        return encoder
    prefix = f"{paths[0]}." if paths[0] else ""
    extractor = create_feature_extractor(encoder, [f"{prefix}{stage}" for stage in _STAGES])

    def embed(views: Tensor) -> Tensor:
        """Return (B, D1 + D2 + D3 + D4)."""
        return torch.cat([maps.mean(dim=(2, 3)) for maps in extractor(views).values()], dim=1)

    return embed


def build_head(name: HeadName, width: int, projection_size: int) -> nn.Module:
    """Build an untrained projection head."""
    if name is HeadName.post:
        # The head of the 2021 study: no normalisation between the layers.
        return nn.Sequential(
            nn.Linear(width, 1024),
            nn.ReLU(inplace=True),
            nn.Linear(1024, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, projection_size),
        )
    hidden = 1 if name is HeadName.simclr2 else 2
    layers: list[nn.Module] = []
    for _ in range(hidden):
        # BatchNorm has its own bias.
        layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.Linear(width, projection_size, bias=False))


def recompute_blocks(encoder: nn.Module) -> None:
    """Make every residual block of a torchvision ResNet recompute its activations in backward.

    Weights and running statistics are bitwise the same as without it.
    """
    for stage in _STAGES:
        for block in encoder.get_submodule(stage).children():
            block.forward = _recomputed(block, block.forward)


def _recomputed(
    block: nn.Module, forward: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        """Run the block without storing its activations."""
        if not torch.is_grad_enabled():
            return forward(x)
        result: Tensor = checkpoint(
            forward,
            x,
            use_reentrant=False,
            preserve_rng_state=False,  # blocks draw no random numbers
            # Without it, the second pass would update the running statistics again.
            context_fn=lambda: (nullcontext(), frozen_statistics(block)),
        )
        return result

    return run


class SimCLR(nn.Module):
    """Encoder and projection head. Both views share a forward pass, and so BatchNorm statistics.

    The encoder is kept and exported, the head discarded. ``node`` is the group of the ranks of
    this node, for ``batchnorm=node``.
    """

    def __init__(self, config: ModelConfig, num_bands: int, node: Group = None) -> None:
        super().__init__()
        self.encoder = build_encoder(config, num_bands)
        width = WIDTHS[config.encoder.value]
        self.head = build_head(config.head, width, config.projection_size)
        if config.batchnorm is not BatchNormGroup.none:
            join_statistics(self, node if config.batchnorm is BatchNormGroup.node else None)
        if config.activation_checkpointing:
            recompute_blocks(self.encoder)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return representations h (2B, width) and projections z (2B, projection_size)."""
        h = self.encoder(views)
        return h, self.head(h)


def build_model(
    config: TrainConfig, num_bands: int, view_size_px: int, context: DistributedContext
) -> DistributedDataParallel:
    """Return the network with equal initial weights on all ranks, wrapped in DDP."""
    node: Group = None
    if config.model.batchnorm is BatchNormGroup.node:
        node = group_of_node(context.node, context.timeout)
    torch.manual_seed(config.seed)
    network = SimCLR(config.model, num_bands, node).to(context.device)
    network = network.to(memory_format=torch.channels_last)
    initial = copy.deepcopy(network.state_dict())
    if config.model.compile:
        # Each stage, and the head, as a separate graph. The gradients of a stage are then ready
        # when its backward pass ends, and DDP averages them during the next one; compiled as one
        # graph, all of them would become ready at the end.
        for stage in _STAGES:
            network.encoder.get_submodule(stage).compile()
        network.head.compile()
    model = average_gradients(network, half=config.gradient_precision is Precision.bfloat16)
    # Compilation specialises on the number of views, so use the real one.
    pairs = config.data.global_batch_size // context.size if config.model.compile else 1
    shape = (2 * pairs, num_bands, view_size_px, view_size_px)
    views = torch.zeros(shape, device=context.device).to(memory_format=torch.channels_last)
    half = config.precision is Precision.bfloat16
    # DDP rebuilds its gradient buckets after the first backward passes, which changes the order of
    # sums. Were that left to the first real step, a resumed run would sum in another order than an
    # uninterrupted one at that step, and differ in the last bits.
    with (
        torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=half),
        warnings.catch_warnings(),
    ):
        # The compiler accesses the gradient of a stage's input, of which torch itself warns.
        warnings.filterwarnings("ignore", "The .grad attribute", UserWarning)
        for _ in range(2):
            _, projections = model(views)
            projections.float().sum().backward()
    model.zero_grad(set_to_none=True)
    network.load_state_dict(initial)
    return model
