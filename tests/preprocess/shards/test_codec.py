"""Codecs: what is decoded past HDF5 equals what HDF5 decodes, and damage is an error."""

import builtins
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from preprocess.shards import GroupLayout, ShardLayout, ShardReader
from preprocess.shards.compression import (
    CODECS,
    NO_CODEC,
    check_codec,
    chunk_map_of,
    decode,
    storage_of,
)
from preprocess.shards.patch import Patch
from preprocess.shards.reader import open_shard
from preprocess.shards.writer import ShardOrigin, write_shard

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
        chunks = chunk_map_of(file["patches/b10"])
    with reader.path.open("r+b") as file:
        file.seek(chunks.offset[4])
        file.write(b"\xff" * int(chunks.size[4]))
    with pytest.raises(OSError, match=r"s\.h5, row 4 of b10: a chunk"):
        reader.read(4)
    reader.read(3)


def test_a_filter_that_is_not_known_here_is_named():
    with pytest.raises(ValueError, match="HDF5 filter 4,"):
        decode(bytearray(8), [(4, ())], 0, np.zeros(4, np.uint16))


def test_a_chunk_of_another_length_is_refused():
    with pytest.raises(ValueError, match="holds 6 bytes, a sample 8"):
        decode(bytearray(6), [], 0, np.zeros(4, np.uint16))


def test_a_codec_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ValueError, match=r"'lzma'; choose one of none, gzip, bitshuffle-lz4, zstd"):
        check_codec("lzma")


def test_a_missing_plugin_is_named_with_the_extra_to_install(monkeypatch):
    from preprocess.shards import compression as codec

    real = builtins.__import__

    def without(name, *arguments, **more):
        if name == "hdf5plugin":
            raise ImportError(name)
        return real(name, *arguments, **more)

    codec._hdf5plugin.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"simclr-s2\[compression\]"):
        check_codec("zstd")
    check_codec("gzip")


def test_uncompressed_shards_are_told_nothing_of_chunks():
    assert storage_of("none", (4, 120, 120)) == {}
