"""The order of samples: one to one, new every epoch, the same for any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr.data.sampler import DeterministicBatchSampler, draws_per_source, permutation


@settings(max_examples=60)
@given(num=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_each_sample_comes_once_in_a_permutation(num, seed, epoch):
    samples = permutation(num, seed, epoch)
    assert np.array_equal(np.sort(samples), np.arange(num))


@pytest.mark.parametrize("num", [480_000, 590_326])
def test_each_sample_comes_once_at_the_size_of_bigearthnet(num):
    samples = permutation(num, 1, 3)
    assert np.array_equal(np.bincount(samples, minlength=num), np.ones(num, np.int64))


def test_neighbours_in_order_are_strangers_in_the_dataset():
    samples = permutation(100_000, 0, 0)
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(samples, np.arange(100_000))[0, 1]) < 0.02


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(permutation(50, s, e)) for s, e in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_a_global_batch_is_the_same_for_any_number_of_ranks(ranks):
    whole = DeterministicBatchSampler(1000, 96, seed=4)
    for step in (0, 9, 10, 57):
        parts = [
            DeterministicBatchSampler(1000, 96, 4, rank, ranks).plan(step)[0]
            for rank in range(ranks)
        ]
        assert np.array_equal(np.concatenate(parts), whole.plan(step)[0])


def test_each_sample_comes_at_most_once_an_epoch():
    sampler = DeterministicBatchSampler(1000, 96, seed=4)
    assert sampler.steps_per_epoch == 10
    for epoch in range(3):
        steps = range(epoch * 10, epoch * 10 + 10)
        seen = np.concatenate([sampler.plan(step)[0] for step in steps])
        assert len(np.unique(seen)) == 960
        assert {sampler.epoch(step) for step in steps} == {epoch}


def test_a_batch_that_does_not_divide_names_the_ones_that_do():
    with pytest.raises(ValueError, match="is 100 but 8 ranks need a multiple of 8; use 96 or 104"):
        DeterministicBatchSampler(1000, 100, seed=0, world_size=8)


def test_a_batch_larger_than_the_dataset_is_refused():
    with pytest.raises(ValueError, match="is 64 but the selected shards hold 20 patches"):
        DeterministicBatchSampler(20, 64, seed=0)


def mixed(weights, sizes=(30, 60, 10), batch=10, **place):
    return DeterministicBatchSampler(
        sum(sizes), batch, 3, sizes=sizes, draws=draws_per_source(sizes, weights), **place
    )


def source_of(samples, sizes=(30, 60, 10)):
    return np.searchsorted(np.cumsum(sizes), samples, side="right")


def test_mixed_sources_fill_an_epoch_by_their_weights():
    sampler = mixed([2, 1, 1])
    for epoch in range(3):
        drawn = np.concatenate([sampler.plan(10 * epoch + step)[0] for step in range(10)])
        assert np.bincount(source_of(drawn)).tolist() == [50, 25, 25]


def test_no_sample_of_a_mixed_source_comes_again_before_all_of_its_others():
    sampler = mixed([2, 1, 1])
    plans = [sampler.plan(step) for step in range(120)]
    samples, passes = (np.concatenate(part) for part in zip(*plans, strict=True))
    for source, size in enumerate((30, 60, 10)):
        mine = source_of(samples) == source
        for number in range(passes[mine].max()):  # the last pass is not over
            seen = samples[mine][passes[mine] == number]
            assert len(seen) == size
            assert len(set(seen.tolist())) == size


def test_the_same_sample_in_one_epoch_is_told_apart_by_its_pass():
    sampler = mixed([8, 1, 1])
    plans = [sampler.plan(step) for step in range(10)]
    pairs = [(s, n) for samples, passes in plans for s, n in zip(*(samples, passes), strict=True)]
    assert len({sample for sample, _ in pairs}) < len(pairs) == len(set(pairs))


def test_mixed_ranks_together_read_what_one_rank_reads():
    whole = mixed([1, 1, 1])
    for step in (0, 7, 13, 1000):
        for ranks in (2, 5, 10):
            parts = [mixed([1, 1, 1], rank=r, world_size=ranks).plan(step) for r in range(ranks)]
            for joined, expected in zip(zip(*parts, strict=True), whole.plan(step), strict=True):
                assert np.array_equal(np.concatenate(joined), expected)


def test_weights_may_be_of_any_scale_and_no_draw_is_lost():
    assert draws_per_source((30, 60, 10), [1, 1, 1]) == draws_per_source((30, 60, 10), [7, 7, 7])
    assert sum(draws_per_source((30, 60, 10), [1, 1, 1])) == 100
    assert draws_per_source((50, 50), [3, 1]) == (75, 25)


def test_a_weight_for_a_folder_without_samples_is_refused():
    with pytest.raises(
        ValueError, match=r"weights is \[1.0, 2.0\], but .* hold \[30, 0\] selected"
    ):
        draws_per_source((30, 0), [1.0, 2.0])
