"""The counter-based generator against its published test vectors."""

import torch

from simclr.philox import Philox


def words(counter: list[int], seed: int) -> list[int]:
    return Philox(seed).words(torch.tensor([counter]))[0].tolist()


def test_published_vectors_come_out():
    ones = 2**32 - 1
    assert words([0] * 4, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words([ones] * 4, 2**64 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_a_draw_does_not_depend_on_its_batch():
    ids, view = torch.arange(50), torch.zeros(50, dtype=torch.int64)
    table = Philox(5).uniforms(2, ids, view, 7)
    alone = Philox(5).uniforms(2, ids[31:32], view[:1], 7)
    assert torch.equal(table[31:32], alone)


def test_more_draws_leave_the_first_ones_as_they_were():
    ids, view = torch.arange(10), torch.ones(10, dtype=torch.int64)
    assert torch.equal(
        Philox(1).uniforms(0, ids, view, 40)[:, :9], Philox(1).uniforms(0, ids, view, 9)
    )


def test_seed_epoch_sample_and_view_each_change_the_draw():
    one = torch.tensor([1])
    draws = [
        Philox(seed).uniforms(epoch, sample, view, 8)
        for seed, epoch, sample, view in [
            (0, 0, one, one),
            (1, 0, one, one),
            (0, 1, one, one),
            (0, 0, one + 1, one),
            (0, 0, one, one + 1),
            (2**40, 0, one, one),
        ]
    ]
    assert len({tuple(draw[0].tolist()) for draw in draws}) == len(draws)


def test_uniforms_fill_the_unit_interval_evenly():
    table = Philox(0).uniforms(0, torch.arange(20000), torch.zeros(20000, dtype=torch.int64), 8)
    assert 0 <= table.min() < 1e-3
    assert 1 - 1e-3 < table.max() < 1
    counts = torch.histc(table, bins=64, min=0, max=1)
    chi_square = ((counts - 2500) ** 2 / 2500).sum()
    assert chi_square < 120  # 63 degrees of freedom: beyond 1e-5
    assert abs(torch.corrcoef(table.T).fill_diagonal_(0)).max() < 0.04
