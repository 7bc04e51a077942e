"""Codecs: samples come back to the bit, equal patches give equal bytes, damage is an error."""

import builtins
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import h5py
import numpy as np
import pytest

from preprocess.shards import GroupLayout, ShardLayout, ShardReader
from preprocess.shards.format import (
    CODECS,
    NO_CODEC,
    Patch,
    check_codec,
    dataset_options,
    open_shard,
)
from preprocess.shards.manifest import ShardOrigin
from preprocess.shards.writer import write_shard

LAYOUT = ShardLayout(
    (GroupLayout("b10", ("B02", "B04"), 30, 10.0), GroupLayout("b20", ("B11",), 15, 20.0))
)
COMPRESSED = [codec for codec in CODECS if codec != NO_CODEC]


def smooth(number):
    """Return pixels that a codec can shrink, as reflectances of a field are."""
    random = np.random.default_rng(number)
    return {
        group.name: (1000 + 40 * number + random.integers(0, 60, group.shape)).astype(np.uint16)
        for group in LAYOUT.groups
    }


def noise(number):
    """Return pixels that no codec can shrink; HDF5 may then store a chunk without its filter."""
    random = np.random.default_rng(number)
    return {
        group.name: random.integers(0, 65536, group.shape, np.uint16) for group in LAYOUT.groups
    }


def written(path, codec, pixels_of, rows=9):
    patches = [Patch(f"p{number}", pixels_of(number)) for number in range(rows)]
    entry = write_shard(path, LAYOUT, patches, rows, ShardOrigin("test", True), codec)
    return patches, ShardReader(path.parent, entry, LAYOUT)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pixels_of", [smooth, noise])
def test_samples_come_back_to_the_bit_through_the_reader_and_through_hdf5(
    tmp_path, codec, pixels_of
):
    patches, reader = written(tmp_path / "s.h5", codec, pixels_of)
    assert reader.entry.codec == codec
    with open_shard(reader.path) as file:
        for row, patch in enumerate(patches):
            sample = reader.read(row)
            for name, pixels in patch.pixels.items():
                assert np.array_equal(sample[name], pixels)
                assert np.array_equal(file[f"patches/{name}"][row], pixels)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_one_sample_is_one_chunk_and_smooth_ones_take_less_room(tmp_path, codec):
    _, reader = written(tmp_path / "s.h5", codec, smooth)
    with open_shard(reader.path) as file:
        data_set = file["patches/b10"]
        assert data_set.chunks == (1, 2, 30, 30)
        assert data_set.id.get_storage_size() < 0.7 * data_set.nbytes
    assert reader.entry.offsets == {}


@pytest.mark.parametrize("codec", CODECS)
def test_equal_patches_give_equal_bytes(tmp_path, codec):
    entries = [written(tmp_path / name, codec, smooth)[1].entry for name in ("a.h5", "b.h5")]
    assert entries[0].sha256 == entries[1].sha256


@pytest.mark.parametrize("codec", CODECS)
def test_a_shorter_shard_equals_one_made_for_its_rows(tmp_path, codec):
    patches, exact = written(tmp_path / "exact.h5", codec, smooth)
    shorter = write_shard(
        tmp_path / "short.h5", LAYOUT, patches, 20, ShardOrigin("test", True), codec
    )
    assert shorter.sha256 == exact.entry.sha256


@pytest.mark.parametrize("codec", COMPRESSED)
def test_many_threads_decode_side_by_side(tmp_path, codec):
    patches, reader = written(tmp_path / "s.h5", codec, smooth)
    rows = [number % 9 for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(reader.read, rows))
    for row, sample in zip(rows, samples, strict=True):
        assert all(np.array_equal(sample[name], patches[row].pixels[name]) for name in sample)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_damaged_chunk_is_an_error_that_names_the_row(tmp_path, codec):
    _, reader = written(tmp_path / "s.h5", codec, smooth)
    with open_shard(reader.path) as file:
        chunk = file["patches/b10"].id.get_chunk_info(4)
    with reader.path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    with pytest.raises(OSError, match=r"s\.h5, row 4 of b10: cannot be decoded.*simclr-verify"):
        reader.read(4)
    reader.read(3)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_child_process_decodes_with_a_file_of_its_own(tmp_path, codec):
    patches, reader = written(tmp_path / "s.h5", codec, smooth)
    reader.read(0)
    child = os.fork()
    if child == 0:
        same = np.array_equal(reader.read(1)["b10"], patches[1].pixels["b10"])
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(reader.read(2)["b10"], patches[2].pixels["b10"])


def test_bitshuffle_shards_of_earlier_packs_are_read(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    patches, reader = written(tmp_path / "s.h5", "none", smooth)
    lz4 = hdf5plugin.Bitshuffle(cname="lz4")
    with h5py.File(reader.path, "r+") as file:
        for group in LAYOUT.groups:
            name = f"patches/{group.name}"
            pixels = file[name][()]
            del file[name]
            file.create_dataset(name, data=pixels, chunks=(1, *group.shape), **lz4)
    entry = replace(reader.entry, codec="bitshuffle-lz4", offsets={})
    old = ShardReader(tmp_path, entry, LAYOUT)
    for row, patch in enumerate(patches):
        assert all(np.array_equal(old.read(row)[n], patch.pixels[n]) for n in patch.pixels)


def test_a_codec_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ValueError, match=r"'lzma'; choose one of none, gzip, zstd"):
        check_codec("lzma")


def test_a_missing_plugin_is_named_with_the_command_to_install_it(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name == "hdf5plugin":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install hdf5plugin"):
        check_codec("zstd")
    check_codec("gzip")


def test_uncompressed_shards_are_told_nothing_of_chunks():
    assert dataset_options("none", (4, 120, 120)) == {}
