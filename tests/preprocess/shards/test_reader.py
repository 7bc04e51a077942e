"""Reading shards: from threads, after a fork and a pickle, in part, and with clear refusals."""

import fcntl
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_data import packed_arrays

from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import INDEX_FIELDS, open_shard


@pytest.fixture
def readers(tmp_path):
    folder = packed_arrays(tmp_path / "shards", 20)
    return open_readers(folder, read_manifest(folder))


def through_h5py(reader, row):
    with open_shard(reader.path) as file:
        return {group.name: file[f"patches/{group.name}"][row] for group in reader.layout.groups}


def equal(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_pixels_by_offset_equal_pixels_through_hdf5(readers):
    for reader in readers:
        assert all(
            equal(reader.read(row), through_h5py(reader, row)) for row in range(reader.entry.rows)
        )


def test_many_threads_may_share_a_reader(readers):
    reader = readers[0]
    expected = [through_h5py(reader, row) for row in range(10)]
    with ThreadPoolExecutor(8) as pool:
        rows = [number % 10 for number in range(400)]
        assert all(
            equal(sample, expected[row])
            for row, sample in zip(rows, pool.map(reader.read, rows), strict=True)
        )


def test_a_pickled_reader_opens_its_file_anew(readers):
    readers[0].read(0)
    copy = pickle.loads(pickle.dumps(readers[0]))
    assert equal(copy.read(3), readers[0].read(3))


def test_a_closed_reader_opens_again(readers):
    before = readers[0].read(0)
    readers[0].close()
    readers[0].close()
    assert equal(readers[0].read(0), before)


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_out_of_range_is_refused(readers, row):
    with pytest.raises(IndexError, match="10 rows"):
        readers[0].read(row)


def test_a_truncated_shard_is_an_error_not_garbage(readers):
    offset = readers[0].entry.offsets["b60"]
    os.truncate(readers[0].path, offset + 10)
    with pytest.raises(OSError, match="truncated"):
        readers[0].read(0)


def test_index_and_labels_come_for_all_rows(readers):
    assert readers[1].index("id").tolist() == [f"arrays-{number:06d}" for number in range(10, 20)]
    assert readers[0].labels("labels").argmax(1).tolist() == [number % 4 for number in range(10)]
    assert readers[0].labels("labels").sum(1).tolist() == [1] * 10


def test_a_shard_that_is_no_hdf5_is_named(tmp_path):
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(b"")
    with pytest.raises(OSError, match=r"shard-00000\.h5 cannot be read as a shard"):
        open_shard(path)


@pytest.mark.parametrize("module", ["shards", "pack", "verify"])
def test_shards_are_read_without_locks_whatever_the_environment_says(tmp_path, module):
    folder = packed_arrays(tmp_path / "shards", 2, num_shards=1)
    script = """
import importlib, sys
from pathlib import Path
importlib.import_module("preprocess." + sys.argv[2])
from preprocess.shards import open_readers, read_manifest
folder = Path(sys.argv[1])
print(open_readers(folder, read_manifest(folder))[0].index("id").tolist())
"""
    with (folder / "shard-00000.h5").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), module],
            env={**os.environ, "HDF5_USE_FILE_LOCKING": "TRUE"},
            cwd=Path(__file__).resolve().parents[3],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "['arrays-000000', 'arrays-000001']\n"), (
        done.stderr
    )


def test_text_of_the_index_is_declared_utf8(tmp_path):
    folder = packed_arrays(tmp_path / "shards", 2, num_shards=1)
    with open_shard(folder / "shard-00000.h5") as file:
        for name in (name for name, dtype in INDEX_FIELDS.items() if dtype == "S"):
            kind = h5py.check_string_dtype(file[f"index/{name}"].dtype)
            assert kind.encoding == "utf-8", name
            assert kind.length is not None, name
