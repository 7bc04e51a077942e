"""The page on the shard format: its own reader reads what was packed, and nothing is left out."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_data import packed_simulated

from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import INDEX_FIELDS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "shard-format.md").read_text()
EXAMPLE = ROOT / "examples" / "read_shards.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed_simulated(tmp_path_factory.mktemp("page"), 10, shard_size_mib=1)


def example():
    """Import the example, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("read_shards", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reader_on_the_page_is_the_example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code in EXAMPLE.read_text()


def test_the_example_reads_every_sample(folder):
    samples = {name: (pixels, labels) for name, pixels, labels in example().read_samples(folder)}
    manifest = read_manifest(folder)
    seen = 0
    for reader in open_readers(folder, manifest):
        values = reader.labels("bigearthnet19")
        classes = manifest.layout.label_set("bigearthnet19").classes
        for row, sample in enumerate(reader.index("id").tolist()):
            pixels, labels = samples[sample]
            ours = reader.read(row)
            assert all(np.array_equal(pixels[group], ours[group]) for group in ours)
            assert labels["bigearthnet19"] == [
                name for name, value in zip(classes, values[row], strict=True) if value
            ]
            seen += 1
    assert seen == len(samples) == 10


def test_the_example_alone_finds_a_changed_pixel_and_prints_one_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    command = [sys.executable, str(EXAMPLE), str(copy), "--show", "1"]
    whole = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert whole.stdout.splitlines()[-1] == "10 samples, every checksum correct"
    entry = read_manifest(copy).shards[0]
    with (copy / entry.file).open("r+b") as file:
        file.seek(entry.offsets["b10"])
        file.write(b"\xff\xff")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == f"read_shards: {entry.file}, row 0: a pixel has changed\n"


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
