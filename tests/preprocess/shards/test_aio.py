"""Many reads in one call: what pread gives at each offset, and what went wrong with each."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from preprocess.shards import aio

SIZE = 512


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(np.random.default_rng(0).bytes(100 * SIZE))
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def queue():
    try:
        return aio.Queue()
    except OSError as error:
        pytest.skip(f"io_submit cannot be used here: {error}")


def asked(descriptors, offsets):
    """Return requests of SIZE bytes each, and the memory that they are to fill."""
    into = np.zeros((len(offsets), SIZE), np.uint8)
    requests = aio.new_requests(len(offsets))
    requests["descriptor"], requests["offset"], requests["size"] = descriptors, offsets, SIZE
    requests["address"] = into.ctypes.data + SIZE * np.arange(len(offsets))
    return requests, into


def first_bytes(file):
    """Read from the beginning; return how much came."""
    requests, _into = asked([file], [0])
    return int(aio.read_many(requests)[0])


def test_every_read_lands_in_its_own_place(queue, file):
    rows = np.random.default_rng(1).integers(0, 100, 3 * aio.DEPTH + 1)
    requests, into = asked([file] * len(rows), rows * SIZE)
    assert (queue.read(requests) == SIZE).all()
    for row, got in zip(rows, into, strict=True):
        assert got.tobytes() == os.pread(file, SIZE, row * SIZE)


def test_the_end_of_a_file_is_a_short_read(queue, file):
    requests, _into = asked([file] * 3, [0, 99 * SIZE + 500, 100 * SIZE])
    assert queue.read(requests).tolist() == [SIZE, 12, 0]


def test_a_folder_or_a_closed_file_is_an_error_and_the_next_call_is_sound(queue, tmp_path, file):
    folder = os.open(tmp_path, os.O_RDONLY)
    requests, _into = asked([file, folder], [0, 0])
    with pytest.raises(OSError, match="EINVAL"):
        queue.read(requests)
    os.close(folder)
    with pytest.raises(OSError, match="EBADF"):
        queue.read(requests)
    requests["descriptor"] = file
    assert queue.read(requests).tolist() == [SIZE, SIZE]


def test_threads_that_read_at_once_do_not_mix(file):
    def rows_of(seed):
        rows = np.random.default_rng(seed).integers(0, 100, 200)
        requests, into = asked([file] * len(rows), rows * SIZE)
        lengths = aio.read_many(requests)
        return [
            got.tobytes() == os.pread(file, SIZE, row * SIZE)
            for row, got, length in zip(rows, into, lengths, strict=True)
            if length == SIZE
        ]

    with ThreadPoolExecutor(8) as pool:
        same = [one for rows in pool.map(rows_of, range(40)) for one in rows]
    assert all(same)
    assert len(same) > 0.9 * 40 * 200  # now and then a thread finds that another was faster


def test_where_there_is_no_such_call_nothing_comes(monkeypatch, file):
    monkeypatch.setattr(aio.platform, "machine", lambda: "s390x")
    monkeypatch.setattr(aio, "_idle", deque())
    assert first_bytes(file) == 0


def test_a_child_reads_with_a_context_of_its_own(queue, file):
    assert first_bytes(file) == SIZE
    child = os.fork()
    if child == 0:
        os._exit(0 if first_bytes(file) == SIZE else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert first_bytes(file) == SIZE
