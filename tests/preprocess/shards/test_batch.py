"""Batches over many shards: every row in its place, whatever the codec; short files are errors."""

import errno
import os
import resource

import numpy as np
import pytest
from make_data import packed_arrays

from preprocess.shards import BatchReader, open_readers, read_manifest
from preprocess.shards import reader as batch
from preprocess.shards.aio import read_many


def readers_of(folder, num_patches, **settings):
    packed_arrays(folder, num_patches, **settings)
    return open_readers(folder, read_manifest(folder))


@pytest.fixture
def readers(tmp_path):
    return readers_of(tmp_path / "shards", 20, num_shards=3)


def empty_batch(readers, size):
    groups = readers[0].layout.groups
    return {group.name: np.zeros((size, *group.shape), np.uint16) for group in groups}


def all_rows(readers):
    return [reader.read(row) for reader in readers for row in range(reader.entry.rows)]


def test_every_row_of_every_shard_arrives_in_its_place(readers):
    expected, buffers = all_rows(readers), empty_batch(readers, 20)
    numbers = np.random.default_rng(0).permutation(20)
    BatchReader(readers).read_into(numbers, buffers, numbers[::-1].copy())
    for number, place in zip(numbers, numbers[::-1], strict=True):
        assert all(np.array_equal(buffers[name][place], expected[number][name]) for name in buffers)


@pytest.mark.parametrize("left", [slice(None), slice(None, None, 2)])
def test_what_one_call_for_all_has_left_is_read_one_by_one(readers, monkeypatch, left):
    def half(requests):
        lengths = read_many(requests)
        lengths[:, left] = -errno.EIO
        buffers["b10"][left] = 0  # rows go into places of the same numbers
        return lengths

    expected, buffers = all_rows(readers), empty_batch(readers, 20)
    monkeypatch.setattr(batch, "read_many", half)
    BatchReader(readers).read_into(np.arange(20), buffers, np.arange(20))
    for number, pixels in enumerate(expected):
        assert all(np.array_equal(buffers[name][number], pixels[name]) for name in buffers)


def test_compressed_and_plain_shards_may_be_mixed(tmp_path, readers):
    mixed = readers + readers_of(tmp_path / "packed", 12, seed=3, codec="gzip")
    expected, buffers = all_rows(mixed), empty_batch(mixed, 32)
    BatchReader(mixed).read_into(np.arange(32), buffers, np.arange(32))
    for number, pixels in enumerate(expected):
        assert all(np.array_equal(buffers[name][number], pixels[name]) for name in buffers)


def test_groups_without_a_buffer_and_other_places_stay_as_they_are(readers):
    buffers = {"b20": empty_batch(readers, 3)["b20"]}
    BatchReader(readers).read_into(np.array([7]), buffers, np.array([1]))
    assert np.array_equal(buffers["b20"][1], all_rows(readers)[7]["b20"])
    assert not buffers["b20"][[0, 2]].any()


def test_a_buffer_of_another_shape_or_type_is_refused(readers):
    batches, one = BatchReader(readers), np.array([0])
    with pytest.raises(ValueError, match="buffer of b10 is uint16"):
        batches.read_into(one, {"b10": np.zeros((1, 4, 3, 3), np.uint16)}, one)
    wrong = empty_batch(readers, 1)["b10"].astype(np.int16)
    with pytest.raises(ValueError, match="buffer of b10 is int16"):
        batches.read_into(one, {"b10": wrong}, one)


def test_nothing_is_written_outside_a_buffer(readers):
    batches, one = BatchReader(readers), np.array([0])
    scattered = np.zeros((2, *readers[0].layout.groups[0].shape, 2), np.uint16)[..., 0]
    fixed = empty_batch(readers, 1)["b10"]
    fixed.flags.writeable = False
    for buffer in (scattered, fixed):
        with pytest.raises(ValueError, match="not one writable piece"):
            batches.read_into(one, {"b10": buffer}, one)
    for place in (1, -1):
        with pytest.raises(IndexError, match="has 1 places"):
            batches.read_into(one, empty_batch(readers, 1), np.array([place]))


def test_a_truncated_shard_is_an_error_not_garbage(readers):
    os.truncate(readers[0].path, readers[0].entry.offsets["b60"] + 10)
    with pytest.raises(OSError, match="truncated"):
        BatchReader(readers).read_into(np.array([0]), empty_batch(readers, 1), np.array([0]))


def test_more_shards_than_open_files_raise_the_limit_as_far_as_it_goes(readers):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        BatchReader(readers * 40)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 376
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_shards_than_the_process_may_open_are_refused(readers, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 300))
    with pytest.raises(ValueError, match=r"376 open files.*300"):
        BatchReader(readers * 40)
