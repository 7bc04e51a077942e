"""Residual blocks that keep only their input: an encoder in, the same encoder in less memory out.

Chen et al. 2016 (arXiv 1604.06174): what a block computed is thrown away after forward and computed
again when backward comes to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from simclr.model.batchnorm import frozen_statistics

_Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def recompute_blocks(encoder: nn.Module) -> None:
    """Let every residual block of a torchvision ResNet be computed again in backward.

    Names and values of parameters stay. Weights and running statistics come out the same to the
    last bit as without it.
    """
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block in encoder.get_submodule(stage).children():
            block.forward = _recomputed(block, block.forward)


def _recomputed(
    block: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        """Compute the block, to be computed again in backward."""
        if not torch.is_grad_enabled():
            return forward(x)
        result: torch.Tensor = checkpoint(
            forward,
            x,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in a block draws
            context_fn=partial(_contexts, block),
        )
        return result

    return run


def _contexts(block: nn.Module) -> _Contexts:
    # Without this the second pass would move the running statistics a second time.
    return nullcontext(), frozen_statistics(block)
