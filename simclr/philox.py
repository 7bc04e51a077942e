"""Random numbers as a pure function: (seed, stream, epoch, sample, view) in, uniforms out.

Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". There is no
state to save or to share: the same draw comes out on any rank, device, thread or resume.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF  # words travel in int64: not every device computes with unsigned ones
# The constants of the paper, of its four-word variant; the keys grow by the golden ratio and by
# sqrt(3) - 1, as fractions of 2^32.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Epoch = int | torch.Tensor  # one for all, or (N,) int64


def philox(counter: torch.Tensor, seed: int) -> torch.Tensor:
    """Return four 32-bit words for each counter: (..., 4) int64 to (..., 4) int64 in [0, 2^32).

    Args:
        counter: four words a draw, each in [0, 2^32).
        seed: 64-bit key.
    """
    first, second = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = counter.unbind(-1)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ first, low1, high0 ^ c3 ^ second, low0
        first, second = (first + _WEYL[0]) & _MASK, (second + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def uniforms(
    seed: int, epoch: Epoch, sample_id: torch.Tensor, view: torch.Tensor, num: int
) -> torch.Tensor:
    """Return ``num`` float32 uniforms in [0, 1) for each (sample, view): (N,), (N,) to (N, num).

    The epoch is one for all, or (N,).
    """
    # A counter gives four words; its last word counts on where a view needs more.
    blocks = torch.arange((num + 3) // 4, device=sample_id.device)
    counter = sample_id.new_empty((len(sample_id), len(blocks), 4))
    counter[..., 0] = sample_id[:, None]
    counter[..., 1] = epoch[:, None] if isinstance(epoch, torch.Tensor) else epoch
    counter[..., 2] = view[:, None]
    counter[..., 3] = blocks
    words = philox(counter, seed).flatten(1)[:, :num]
    # 24 bits are what a float32 holds exactly.
    return (words >> 8).to(torch.float32) * 2.0**-24


def _multiply(word: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    # int64 wraps, so the low 64 bits of the product are exact; the shift is arithmetic, hence
    # the mask.
    product = word * factor
    return (product >> 32) & _MASK, product & _MASK
