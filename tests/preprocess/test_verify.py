"""Verification: whatever is changed in a packed folder is found, named, and can be mended."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_data import edit_manifest, packed_arrays

from preprocess.config import VerifyConfig
from preprocess.shards import read_manifest
from preprocess.shards.format import sha256_of
from preprocess.verify import verify

REPOSITORY = Path(__file__).resolve().parents[2]


def problems_of(folder, **settings):
    return verify(VerifyConfig(shards=str(folder), **settings), progress=False).problems


def flip_bit(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def packed(tmp_path):
    return packed_arrays(tmp_path / "shards", 24)


def test_a_sound_folder_has_no_problem(packed):
    report = verify(VerifyConfig(shards=str(packed)))
    assert report.ok
    assert (report.shards, report.rows, report.quick, report.simulated) == (2, 24, False, True)


@pytest.mark.parametrize("group", ["b10", "b20", "b60"])
@pytest.mark.parametrize("row", [0, 5, 11])
def test_a_flipped_bit_names_shard_and_sample(packed, group, row):
    manifest = read_manifest(packed)
    entry = manifest.shards[1]
    size = next(g.sample_bytes for g in manifest.layout.groups if g.name == group)
    flip_bit(packed / entry.file, entry.offsets[group] + row * size + size // 2, bit=row % 8)
    found = [str(problem) for problem in problems_of(packed)]
    assert any(f"{entry.file}: sample arrays-{12 + row:06d} (row {row})" in text for text in found)
    assert not any("shard-00000" in text for text in found)
    assert all("repair=true" in text for text in found)


def test_a_flipped_bit_anywhere_in_a_file_is_found(packed):
    path = packed / "shard-00000.h5"
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 60).astype(int).tolist():
        flip_bit(path, position, bit=position % 8)
        assert any(problem.file == path.name for problem in problems_of(packed)), position
        path.write_bytes(content)
    assert not problems_of(packed)


@pytest.mark.parametrize("quick", [True, False])
def test_missing_and_cut_shards_are_found_without_reading_pixels(packed, quick):
    (packed / "shard-00000.h5").unlink()
    path = packed / "shard-00001.h5"
    path.write_bytes(path.read_bytes()[:-1])
    found = [str(problem) for problem in problems_of(packed, quick=quick)]
    assert len(found) == 2
    assert found[0].startswith("shard-00000.h5: is missing")
    assert "shard-00001.h5: has" in found[1]


def test_quick_leaves_pixels_alone(packed):
    entry = read_manifest(packed).shards[0]
    flip_bit(packed / entry.file, entry.offsets["b10"])
    assert not problems_of(packed, quick=True)


def test_a_file_of_the_right_size_that_is_no_hdf5_is_named(packed):
    path = packed / "shard-00000.h5"
    path.write_bytes(b"x" * path.stat().st_size)
    (problem,) = problems_of(packed, quick=True)
    assert "cannot be read as a shard" in problem.what


def test_wrong_statistics_in_the_manifest_are_found(packed):
    edit_manifest(packed, lambda data: data["statistics"]["B02"].update(mean=1.0))
    (problem,) = problems_of(packed)
    assert (problem.file, problem.what) == ("manifest.json", "statistics differ from the pixels")


def test_wrong_label_counts_in_the_manifest_are_found(packed):
    edit_manifest(packed, lambda data: data["provenance"]["label_counts"]["labels"].update(field=0))
    (problem,) = problems_of(packed)
    assert "label counts" in problem.what


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda data: data["shards"][0].update(rows=11), "the manifest says"),
        (lambda data: data["shards"][0]["offsets"].update(b20=0), "pixels begin at"),
        (lambda data: data["shards"][0].update(sha256="0" * 64), "SHA-256"),
        (lambda data: data["layout"]["groups"][0].update(name="b15"), "b15"),
    ],
)
def test_a_manifest_that_contradicts_a_shard_is_found(packed, change, word):
    edit_manifest(packed, change)
    assert any(word in problem.what for problem in problems_of(packed))


def test_a_shard_whose_labels_answer_twice_is_found(packed):
    with h5py.File(packed / "shard-00000.h5", "r+") as file:
        file["labels/labels"][3] = [1, 1, 0, 0]
    assert any("no single label" in problem.what for problem in problems_of(packed))


def test_a_disk_that_fails_in_one_shard_hides_no_fault_of_another(packed, monkeypatch):
    def on_a_bad_disk(path):
        if path.name == "shard-00000.h5":
            raise OSError(errno.EIO, "Input/output error")
        return sha256_of(path)

    monkeypatch.setattr("preprocess.verify.sha256_of", on_a_bad_disk)
    flip_bit(packed / "shard-00001.h5", 9000)
    found = [str(problem) for problem in problems_of(packed)]
    assert found[0].startswith("shard-00000.h5: cannot be read to its end ([Errno 5]")
    assert found[-1].startswith("shard-00001.h5: differs from its SHA-256")


def test_a_flipped_bit_in_the_heap_of_hdf5_hangs_nothing(packed):
    path = packed / "shard-00000.h5"
    flip_bit(path, path.read_bytes().index(b"GCOL") + 25, bit=3)  # the size of the first object
    code = (
        "import sys; from preprocess.verify import VerifyConfig, verify\n"
        "print(*verify(VerifyConfig(shards=sys.argv[1]), progress=False).problems)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, packed], cwd=REPOSITORY, capture_output=True, timeout=100
    )
    assert b"shard-00000.h5: differs from its SHA-256" in child.stdout


def put_a_group_in_its_place(file):
    del file["index/crc32"]
    file.create_group("index/crc32")


def store_as_big_endian(file):
    pixels = file["patches/b60"][()]
    del file["patches/b60"]
    file.create_dataset("patches/b60", data=pixels.astype(">u2"))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda file: file.__delitem__("index/crc32"), "holds no index/crc32"),
        (put_a_group_in_its_place, "cannot be read as a shard"),
        (store_as_big_endian, "is of type >u2"),
        (lambda file: file.attrs.__setitem__("format_version", 2), "is of format"),
    ],
)
def test_a_shard_of_another_format_is_named(packed, spoil, word):
    with h5py.File(packed / "shard-00000.h5", "r+") as file:
        spoil(file)
    # the size may change with it; what counts is what the inside tells
    size = (packed / "shard-00000.h5").stat().st_size
    edit_manifest(packed, lambda data: data["shards"][0].update(size_bytes=size))
    assert any(word in problem.what for problem in problems_of(packed, quick=True))


def test_the_same_shard_twice_is_found(packed):
    shutil.copy(packed / "shard-00000.h5", packed / "shard-00007.h5")
    edit_manifest(
        packed,
        lambda data: data["shards"].append({**data["shards"][0], "file": "shard-00007.h5"}),
    )
    assert any("arrays-000000 is there twice" in problem.what for problem in problems_of(packed))


@pytest.mark.parametrize("shards", ["", "nowhere"])
def test_a_folder_without_manifest_is_refused(tmp_path, shards):
    with pytest.raises(ValueError, match=r"shards is empty|nowhere holds no manifest\.json"):
        verify(VerifyConfig(shards=str(tmp_path / shards) if shards else ""))


def test_a_flipped_bit_in_what_is_known_of_a_sample_names_it(packed):
    with h5py.File(packed / "shard-00001.h5") as file:
        offset = file["index/place"].id.get_offset()
        width = file["index/place"].dtype.itemsize
    flip_bit(packed / "shard-00001.h5", offset + 3 * width + 1)
    found = [str(problem) for problem in problems_of(packed)]
    assert any("what is known of sample arrays-000015 (row 3)" in text for text in found)
    assert not any("(row 4)" in text for text in found)


def test_a_manifest_from_before_clipped_pixels_were_counted_is_read_and_sound(packed):
    def forget(data):
        for band in data["statistics"].values():
            del band["clipped_fraction"]

    edit_manifest(packed, forget)
    assert {s.clipped_fraction for s in read_manifest(packed).statistics.values()} == {None}
    assert problems_of(packed) == []
