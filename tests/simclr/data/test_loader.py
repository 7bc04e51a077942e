"""Batches hold exactly the planned samples, whatever the threads and slots."""

import time

import numpy as np
import pytest
import torch
from batches import sequential_batches
from make_data import packed_arrays

from preprocess.bands import L2A_BANDS
from simclr.data.dataset import open_dataset
from simclr.data.loader import Loader, _Slot, training_batches
from simclr.data.sampler import DeterministicBatchSampler

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = packed_arrays(tmp_path_factory.mktemp("shards"), 50, num_shards=4)
    return open_dataset([str(folder)], L2A_BANDS)


def pixels_of(dataset, sample):
    buffers = {group.name: np.empty((1, *group.shape), np.uint16) for group in dataset.layouts[0]}
    dataset.read_into(np.array([sample]), buffers, np.array([0]))
    return {name: buffer[0] for name, buffer in buffers.items()}


@pytest.mark.parametrize(("threads", "slots"), [(1, 2), (3, 2), (2, 5)])
def test_batches_hold_the_planned_samples_in_the_planned_order(dataset, threads, slots):
    sampler = DeterministicBatchSampler(50, 8, seed=0)
    loader = training_batches(
        dataset,
        sampler,
        start_step=4,
        num_steps=11,
        device=CPU,
        num_threads=threads,
        num_slots=slots,
    )
    steps = 0
    for step, batch in enumerate(loader, start=4):
        planned = sampler.plan(step)[0]
        assert np.array_equal(batch.sample_id.numpy(), dataset.sample_id[planned])
        for position, sample in enumerate(planned):
            for name, expected in pixels_of(dataset, int(sample)).items():
                assert np.array_equal(batch.groups[name][position].numpy(), expected)
        steps += 1
    assert steps == 7
    assert loader.wait_s >= 0


def test_a_batch_stays_as_it_is_until_the_next_one_is_asked_for(dataset):
    loader = iter(sequential_batches(dataset, 8, CPU))
    batch = next(loader)
    before = {name: tensor.clone() for name, tensor in batch.groups.items()}
    torch.manual_seed(0)
    for _ in range(20):  # time for the threads to run ahead
        torch.randn(200, 200) @ torch.randn(200, 200)
    assert all(torch.equal(batch.groups[name], before[name]) for name in before)


def test_sequential_batches_read_every_sample_once(dataset):
    batches = [batch.sample_id.clone() for batch in sequential_batches(dataset, 16, CPU)]
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    assert torch.equal(torch.cat(batches), torch.arange(50))


def test_an_error_in_a_thread_reaches_the_consumer(dataset):
    loader = Loader(
        dataset,
        lambda number: np.array([0, 1, 10**6]),
        num_batches=2,
        batch_size=3,
        device=CPU,
    )
    with pytest.raises(IndexError):
        list(loader)


def test_a_truncated_shard_is_an_error_that_names_it(tmp_path):
    folder = packed_arrays(tmp_path, 20, num_shards=1)
    shard = next(folder.glob("shard-*.h5"))
    dataset = open_dataset([str(folder)], L2A_BANDS)
    with shard.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(OSError, match=r"shard-00000.h5 ends .*: truncated"):
        list(sequential_batches(dataset, 8, CPU))


def test_leaving_early_ends_the_threads(dataset):
    import threading

    before = set(threading.enumerate())  # a run that failed in another test may still have some
    for _ in sequential_batches(dataset, 4, CPU):
        break
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("loader")]


def test_the_next_batch_is_on_its_way_while_one_is_in_use(dataset, monkeypatch):
    copied = []
    copy = _Slot.copy

    def noted(slot, reads, *place):
        batch = copy(slot, reads, *place)
        copied.append(batch.sample_id.tolist())
        return batch

    monkeypatch.setattr(_Slot, "copy", noted)
    batches = iter(sequential_batches(dataset, 8, CPU))
    next(batches)
    end = time.monotonic() + 600
    while len(copied) < 2 and time.monotonic() < end:  # nobody asks for the second one
        time.sleep(0.01)
    assert copied[1] == list(range(8, 16))
