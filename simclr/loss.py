"""NT-Xent and DCL against the negatives of all ranks, computed in tiles.

NT-Xent is eq. 1 of Chen et al. 2020 (arXiv 2002.05709), averaged over the 2N views; DCL excludes
the positive from the denominator (Yeh et al. 2021, arXiv 2110.06848). With ``v_i`` the logsumexp
over the negatives of row ``i`` and ``s_ip`` the similarity to its positive,

    NT-Xent  l_i = softplus(v_i - s_ip)          DCL  l_i = v_i - s_ip

so nothing cancels when the positive dominates. The similarity matrix is symmetric: from the other
rows' logsumexp alone, a rank recomputes their gradients with respect to its own rows, so backward
needs no collective and every exponent is at most zero. The full matrix is never stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from simclr.config import LossConfig, LossName
from simclr.distributed import gather_rows, num_ranks, rank

# Rows of the similarity matrix per tile: with 16,384 views a tile is 16 MB of float32, and the
# memory of the loss does not grow with the square of the batch.
_TILE_ROWS = 256


def contrastive_loss(
    projections: torch.Tensor,
    config: LossConfig,
    gather: Callable[[torch.Tensor], torch.Tensor] = gather_rows,
) -> torch.Tensor:
    """Return the mean loss of this rank's rows against the views of all ranks.

    DistributedDataParallel averages gradients over ranks; the gradient is scaled so that the
    average is the gradient of the loss of the global batch.

    Args:
        projections: (2B, D), first views then second views; rows i and i + B are positives. B must
            be equal on all ranks, and no rank may scale its loss differently.
        config: loss name and temperature.
        gather: concatenates the ranks' denominators, (2B,) each; may be replaced to piggyback an
            extra value on this collective (the stop reason).

    Returns:
        A float32 scalar (float64 for float64 input).

    Raises:
        ValueError: an odd number of rows, or a single pair over all ranks, which has no negatives.
    """
    num = len(projections)
    if num % 2 or num * num_ranks() < 4:
        raise ValueError(
            f"{num} projections on {num_ranks()} ranks; give two views each of at least two pairs "
            "over all ranks, since a negative is a view of another pair"
        )
    with torch.autocast(projections.device.type, enabled=False):
        # At temperature 0.1, bfloat16 logits would cause errors of percents in the gradient.
        rows = projections if projections.dtype == torch.float64 else projections.float()
        unit = F.normalize(rows, dim=1)
        loss: torch.Tensor = _Contrastive.apply(
            unit, config.temperature, config.name is LossName.dcl, gather
        )
    return loss


def chance_level(global_batch_size: int, config: LossConfig) -> float:
    """Return the loss when all projections are equal: ln(2N - 1), for DCL ln(2N - 2)."""
    return math.log(2 * global_batch_size - (2 if config.name is LossName.dcl else 1))


class _Contrastive(torch.autograd.Function):
    """The loss of unit rows (2B, D), with its hand-written gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: torch.Tensor,
        temperature: float,
        decoupled: bool,
        gather: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Gather all rows, then all denominators: the only two collectives."""
        everyone = gather_rows(unit)  # (M, D), rank by rank, M = 2B x ranks
        # A rank's own rows start at rank * 2B in the gathered matrix.
        first = rank() * len(unit)
        # The positive of row i is row (i + B) mod 2B.
        positive = torch.roll(unit, len(unit) // 2, 0)
        similarity = (unit * positive).sum(1) / temperature  # (2B,), both views are on this rank
        negatives = unit.new_empty(len(unit))
        for start, tile in _tiles(unit, everyone, temperature, first):
            # In place, where torch.logsumexp would allocate a second tile. No row is empty: a batch
            # has at least two pairs, hence two negatives.
            largest = tile.amax(1, keepdim=True)
            total = tile.sub_(largest).exp_().sum(1)
            negatives[start : start + len(tile)] = total.log_().add_(largest.squeeze(1))
        if decoupled:
            denominator, losses = negatives, negatives - similarity
        else:
            denominator = torch.logaddexp(negatives, similarity)
            # Above the threshold torch drops the 1 in log(1 + exp): its default 20 costs 2e-9.
            losses = F.softplus(negatives - similarity, threshold=60)
        # Backward needs O(M D) memory: it recomputes the tiles of the (2B, M) matrix.
        ctx.save_for_backward(
            unit, everyone, denominator, gather(denominator), negatives - similarity
        )
        ctx.temperature, ctx.decoupled, ctx.first = temperature, decoupled, first
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Return the gradient of all ranks' losses with respect to this rank's rows."""
        unit, everyone, denominator, denominators, margin = ctx.saved_tensors
        half = len(unit) // 2
        gradient = torch.empty_like(unit)
        for start, tile in _tiles(unit, everyone, ctx.temperature, ctx.first):
            rows = slice(start, start + len(tile))
            # Row i's own softmax, plus the weight of row i in every other row's softmax; in place,
            # since tiles dominate the memory of this loss.
            weights = torch.sub(tile, denominator[rows, None]).exp_()
            weights += tile.sub_(denominators).exp_()
            gradient[rows] = weights @ everyone  # (T, M) @ (M, D)
        # Each view of a pair attracts the other: with DCL at full weight, with NT-Xent less, the
        # higher the probability that view assigns to the positive already.
        if ctx.decoupled:
            pull = torch.full_like(margin, 2.0)
        else:
            missing = torch.sigmoid(margin)  # 1 - P(positive), without cancellation
            pull = missing + torch.roll(missing, half, 0)
        gradient -= pull[:, None] * torch.roll(unit, half, 0)
        # The mean over 2B rows here and DDP's mean over ranks give the mean over all M views.
        return gradient * (upstream / (len(unit) * ctx.temperature)), None, None, None


def _tiles(
    unit: torch.Tensor, everyone: torch.Tensor, temperature: float, first: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, similarities of the rows (T, M)), with self and positive set to -inf."""
    num, half = len(unit), len(unit) // 2
    for start in range(0, num, _TILE_ROWS):
        tile = (unit[start : start + _TILE_ROWS] @ everyone.T).div_(temperature)
        rows = torch.arange(start, start + len(tile), device=unit.device)
        excluded = torch.stack([rows, (rows + half) % num], dim=1) + first
        # Indices instead of a boolean mask, which would wait for the device.
        yield start, tile.scatter_(1, excluded, -math.inf)
