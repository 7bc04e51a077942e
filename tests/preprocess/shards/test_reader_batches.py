"""Batches over many shards: every row in its place, whatever the codec; short files are errors."""

import itertools
import os
import pickle
import resource

import numpy as np
import pytest
from make_data import packed_arrays

from preprocess.shards import BatchReader, open_readers, read_manifest


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


@pytest.mark.parametrize("vectors", [1, 2, 1024])
def test_short_reads_and_long_runs_are_read_to_their_end(readers, monkeypatch, vectors):
    whole = os.preadv

    def short(descriptor, views, offset):
        """Return less than was asked for, as network file systems may."""
        wanted = sum(map(len, views))
        return whole(descriptor, list(cut(views, max(1, wanted * 2 // 3))), offset)

    def cut(views, size):
        for view in views:
            yield view[:size]
            size -= min(size, len(view))

    expected, buffers = all_rows(readers), empty_batch(readers, 20)
    monkeypatch.setattr("preprocess.shards.MAX_VECTORS", vectors)
    monkeypatch.setattr(os, "preadv", lambda d, v, o: short(d, list(v), o))
    BatchReader(readers).read_into(np.arange(20), buffers, np.arange(20)[::-1])
    for number, pixels in enumerate(expected):
        assert all(np.array_equal(buffers[name][19 - number], pixels[name]) for name in buffers)


def test_neighbours_in_a_file_are_read_in_one_call(readers, monkeypatch):
    calls, whole = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: calls.append(given) or whole(*given))
    BatchReader(readers).read_into(np.arange(20), empty_batch(readers, 20), np.arange(20))
    assert len(calls) == len(readers) * len(readers[0].layout.groups)


def test_an_empty_batch_reads_nothing(readers):
    none = np.zeros(0, np.int64)
    BatchReader(readers).read_into(none, empty_batch(readers, 1), none)


def test_an_error_of_the_disk_names_the_file(readers, monkeypatch):
    def broken(*_given):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(OSError, match=r"simclr-verify.*shard-00000\.h5"):
        readers[0].read(0)


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
        with pytest.raises(IndexError, match="has 1 slots"):
            batches.read_into(one, empty_batch(readers, 1), np.array([place]))


def test_a_truncated_shard_is_an_error_not_garbage(readers):
    os.truncate(readers[0].path, readers[0].entry.offsets["b60"] + 10)
    with pytest.raises(OSError, match="truncated"):
        BatchReader(readers).read_into(np.array([0]), empty_batch(readers, 1), np.array([0]))


@pytest.mark.parametrize("number", [-1, 20])
def test_a_row_that_is_not_there_is_an_error_not_garbage(readers, number):
    buffers = empty_batch(readers, 1)
    with pytest.raises(IndexError, match=f"row {number} .*of 20 rows"):
        BatchReader(readers).read_into(np.array([number]), buffers, np.array([0]))


def test_several_readers_open_more_files_than_the_limit_at_the_start(readers):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    copies = [[pickle.loads(pickle.dumps(one)) for one in readers * 40] for _ in range(4)]
    first_rows = np.cumsum([0] + [one.entry.rows for one in readers * 40])[:-1]
    slots = np.zeros(len(first_rows), np.int64)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        for each in copies:
            BatchReader(each).read_into(first_rows, empty_batch(readers, 1), slots)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in itertools.chain(*copies):
            one.close()


def test_more_shards_than_the_process_may_open_are_refused(readers, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 300))
    with pytest.raises(ValueError, match=r"376 open files.*300"):
        BatchReader(readers * 40)
