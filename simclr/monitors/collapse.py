"""Signs of collapse in the projections of a step: (2B, D) in, a few scalars out.

A contrastive loss can fall while all projections draw together; these numbers cannot.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from simclr.collectives import sum_over_ranks


@torch.no_grad()
def spread(projections: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what one rank's rows say, as tensors on the device.

    deviation: mean over dimensions of the standard deviation of unit projections, times sqrt(D);
    1 for directions spread evenly, 0 when all are equal. mean_cosine: over all distinct rows; near
    0, or 1 when all are equal. alignment and uniformity: Wang and Isola 2020 (arXiv 2005.10242),
    eq. 1 with alpha 2 and eq. 2 with t 2; evenly spread directions have uniformity -4 + 8 / D.
    """
    unit = F.normalize(projections.float(), dim=1)
    num, width = unit.shape
    first, second = unit.chunk(2)
    total = unit.sum(0)
    return {
        "deviation": unit.std(0).mean() * math.sqrt(width),
        "mean_cosine": (total @ total - num) / (num * (num - 1)),
        "alignment": (first - second).square().sum(1).mean(),
        "uniformity": _uniformity(unit),
    }


def _uniformity(unit: torch.Tensor) -> torch.Tensor:
    num = len(unit)
    # |a - b|^2 = 2 - 2 a.b for unit rows; logsumexp, since exp(-8) summed in float32 loses digits
    logits = (4 * (unit @ unit.T) - 4).fill_diagonal_(-math.inf)
    return torch.logsumexp(logits.flatten(), 0) - math.log(num * (num - 1))


def effective_ranks(rows: torch.Tensor) -> dict[str, float]:
    """Return RankMe of all ranks' rows (N, D), as they are and centred; waits for the device.

    RankMe (Garrido et al. 2023, arXiv 2210.02885, eq. 1) is the exponential of the entropy of the
    singular values, between 1 and D, and at most N. A common offset of all rows hides their spread
    from the first number, hence the second. Rows are brought to unit length.
    """
    return ranks_of_moments(sum_over_ranks(moments(rows)))


@torch.no_grad()
def moments(rows: torch.Tensor) -> torch.Tensor:
    """Return products, sums and count of unit rows (N, D) as one (D + 1, D + 1) float64 matrix."""
    # float64: squaring halves the digits, and small singular values are what is being counted
    unit = F.normalize(rows.double(), dim=1)
    extended = torch.cat([unit, unit.new_ones(len(unit), 1)], dim=1)
    return extended.T @ extended


def ranks_of_moments(table: torch.Tensor) -> dict[str, float]:
    """Return RankMe from ``moments``, summed over whatever holds rows."""
    table = table.cpu()
    products, total, num = table[:-1, :-1], table[-1, :-1], table[-1, -1]
    return {
        "rank_me": _rank_me(products),
        "rank_me_centred": _rank_me(products - torch.outer(total, total) / num),
    }


def _rank_me(products: torch.Tensor) -> float:
    if not products.isfinite().all():
        return math.nan  # projections of a skipped step; the solver would raise
    # Rounding leaves negative eigenvalues where there is nothing.
    singular = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(products.dtype).tiny)
    return math.exp(-float((share * torch.log(share + 1e-7)).sum()))
