"""The page on the shard format: its own reader reads what was packed, and nothing is left out."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_data import packed_simulated

from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import INDEX_FIELDS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "shard-format.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed_simulated(tmp_path_factory.mktemp("page"), 10, shard_size_mib=1)


def test_the_reader_on_the_page_reads_every_sample(folder):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"folder": folder}
    exec(code, names)
    manifest = read_manifest(folder)
    seen = 0
    for reader in open_readers(folder, manifest):
        values = reader.labels("bigearthnet19")
        classes = manifest.layout.label_set("bigearthnet19").classes
        for row, sample in enumerate(reader.index("id").tolist()):
            pixels, labels = names["samples"][sample]
            ours = reader.read(row)
            assert all(np.array_equal(pixels[group], ours[group]) for group in ours)
            assert labels["bigearthnet19"] == [
                name for name, value in zip(classes, values[row], strict=True) if value
            ]
            seen += 1
    assert seen == len(names["samples"]) == 10


def test_pixels_lie_where_the_page_says(folder):
    manifest = read_manifest(folder)
    entry = manifest.shards[1]
    raw = (folder / entry.file).read_bytes()
    with h5py.File(folder / entry.file) as file:
        for group in manifest.layout.groups:
            size = len(group.bands) * group.size_px**2 * 2
            begin = entry.offsets[group.name] + 2 * size
            expected = np.frombuffer(raw[begin : begin + size], "<u2").reshape(group.shape)
            data_set = file[f"patches/{group.name}"]
            assert np.array_equal(data_set[2], expected)
            assert data_set.chunks is None


def test_every_data_set_attribute_and_key_is_on_the_page(folder):
    manifest = read_manifest(folder)
    with h5py.File(folder / manifest.shards[0].file) as file:
        found = [*file.attrs, *file["index"], *file["patches"]]
        found += [*file["patches/b10"].attrs, *file["labels/bigearthnet19"].attrs]
        found += [*file["labels"], *file["statistics"]]
    keys = [*manifest.provenance, *manifest.statistics["B02"].__slots__]
    assert [name for name in (*found, *keys) if name not in PAGE] == []
    assert all(f"| `{name}` |" in PAGE for name in INDEX_FIELDS)
