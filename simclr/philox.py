"""Random numbers as a pure function of (seed, epoch, sample, view).

Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". There is no
state to save or share: draws are the same on any rank, device or thread, and after a resume.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF  # words are stored in int64: not every device computes with unsigned integers
# Constants of the paper's four-word variant; the keys are incremented by the golden ratio and by
# sqrt(3) - 1, as fractions of 2^32.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Epoch = int | torch.Tensor  # a common one, or (N,) int64


class Philox:
    """A generator for a 64-bit seed, with constants on the device: no draw copies from the host."""

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        first, second = seed & _MASK, (seed >> 32) & _MASK
        keys = [
            [(first + n * _WEYL[0]) & _MASK, (second + n * _WEYL[1]) & _MASK]
            for n in range(_ROUNDS)
        ]
        self._keys = torch.tensor(keys, device=device)[..., None]  # (rounds, 2, 1)
        self._multipliers = torch.tensor(_MULTIPLIERS, device=device)[:, None]

    def words(self, counter: torch.Tensor) -> torch.Tensor:
        """Return four 32-bit words per counter: (..., 4) int64 to (..., 4) int64 in [0, 2^32).

        Both halves of a round share operations, each of which is a launch on a GPU.
        """
        even, odd = counter.reshape(-1, 4).T.reshape(2, 2, -1).unbind(1)  # words 0, 2 and 1, 3
        for key in self._keys.unbind(0):
            # int64 wraps, so the low 64 bits of the product are exact; the shift is arithmetic,
            # hence the mask. The odd words keep more than 32 bits, which are masked out later.
            product = (even * self._multipliers).flip(0)
            even = (product >> 32).bitwise_xor_(odd).bitwise_xor_(key).bitwise_and_(_MASK)
            odd = product
        return torch.stack([even, odd & _MASK], 1).reshape(4, -1).T.reshape(counter.shape)

    def uniforms(
        self, epoch: Epoch, sample_id: torch.Tensor, view: torch.Tensor, num: int
    ) -> torch.Tensor:
        """Return ``num`` float32 uniforms in [0, 1) for each (sample, view), (N, num).

        ``sample_id`` and ``view`` are (N,) int64; ``epoch`` is an int or (N,).
        """
        # A counter gives four words; its last word numbers the blocks if a view needs more.
        blocks = torch.arange((num + 3) // 4, device=sample_id.device)
        counter = sample_id.new_empty((len(sample_id), len(blocks), 4))
        counter[..., 0] = sample_id[:, None]
        counter[..., 1] = epoch[:, None] if isinstance(epoch, torch.Tensor) else epoch
        counter[..., 2] = view[:, None]
        counter[..., 3] = blocks
        words = self.words(counter).flatten(1)[:, :num]
        # float32 represents 24 bits exactly.
        return (words >> 8).to(torch.float32) * 2.0**-24
