"""Bits flip at random in packed shards: each is found, and named with the sample that it hit."""

import logging
import random
import re
from collections import Counter

import h5py
import pytest
from make_data import bigearthnet_v1

from preprocess.config import PackConfig, VerifyConfig
from preprocess.pack import pack
from preprocess.shards import open_readers, read_manifest
from preprocess.sources.bigearthnet import BigEarthNetV1Config
from preprocess.verify import verify

_log = logging.getLogger(__name__)

NUM_FLIPS = 1000
BANDS = ["B02", "B05", "B09"]
PIXELS = re.compile(r"sample (\S+) \(row (\d+)\) (differs from|cannot be decoded)")
FACTS = re.compile(r"what is known of sample (.+) \(row (\d+)\) differs from")


def packed(tmp_path, codec):
    """Pack 12 patches, six a shard: small, so that tables of contents are hit often."""
    bigearthnet_v1(tmp_path / "tree", 12, bands=BANDS)
    source = BigEarthNetV1Config(root=str(tmp_path / "tree"), bands=BANDS)
    config = PackConfig(
        source=source, output=str(tmp_path / "out"), shard_size_mib=0.22, compression=codec
    )
    pack(config, progress=False)
    return tmp_path / "out"


def extents(path):
    """Return (start, stop, kind, row) of every place in a shard that belongs to one sample."""
    found = []

    def note(name, item):
        if not isinstance(item, h5py.Dataset) or name.startswith("statistics"):
            return
        kind, rows = name.partition("/")[0], len(item)
        if item.chunks is None:
            start, size = item.id.get_offset(), item.nbytes // rows
            places = [(start + row * size, size) for row in range(rows)]
        else:
            chunks = [item.id.get_chunk_info(row) for row in range(rows)]
            places = [(chunk.byte_offset, chunk.size) for chunk in chunks]
        found.extend((at, at + size, kind, row) for row, (at, size) in enumerate(places))

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def flip(path, position, bit):
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 1 << bit]))


def rows_in(pattern, texts):
    return {int(match[2]) for text in texts for match in pattern.finditer(text)}


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param("none", marks=pytest.mark.slow),
        pytest.param("gzip", marks=pytest.mark.exhaustive),
        pytest.param("zstd", marks=pytest.mark.exhaustive),
    ],
)
def test_a_thousand_random_flips_are_found_with_shard_and_sample(tmp_path, codec):
    folder = packed(tmp_path, codec)
    readers = open_readers(folder, read_manifest(folder))
    assert len(readers) == 2
    ids = {reader.entry.file: reader.index("id").tolist() for reader in readers}
    sizes = {reader.entry.file: reader.entry.size_bytes for reader in readers}
    places = {name: extents(folder / name) for name in sizes}
    seed, hits = 1, Counter()
    dice = random.Random(seed)
    for _ in range(NUM_FLIPS):
        (name,) = dice.choices(list(sizes), list(sizes.values()))
        position, bit = dice.randrange(sizes[name]), dice.randrange(8)
        flip(folder / name, position, bit)
        problems = verify(VerifyConfig(shards=str(folder), threads=1), progress=False).problems
        flip(folder / name, position, bit)
        what = f"bit {bit} of byte {position} of {name}: {[str(problem) for problem in problems]}"
        assert {problem.file for problem in problems} == {name}, what
        texts = [problem.what for problem in problems]
        owner = next((p[2:] for p in places[name] if p[0] <= position < p[1]), ("structure", None))
        hits[owner[0]] += 1
        if owner[0] == "patches":
            assert rows_in(PIXELS, texts) == {owner[1]}, what
            assert ids[name][owner[1]] in " ".join(texts), what
        elif owner[1] is not None:
            # the name itself may be what has changed; the number of the row has not
            assert rows_in(FACTS, texts) == {owner[1]}, what
    _log.info("%s, seed %d: %d flips found, they hit %s", codec, seed, NUM_FLIPS, dict(hits))
    assert hits["patches"] > NUM_FLIPS / 2
    assert hits["structure"] > NUM_FLIPS / 20
    assert not verify(VerifyConfig(shards=str(folder)), progress=False).problems
