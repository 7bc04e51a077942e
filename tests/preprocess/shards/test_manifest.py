"""The manifest: what is written is read, and anything else is refused in plain words."""

import json
import random

import pytest
from make_data import packed_arrays

from preprocess.shards import LabelSet, ShardLayout, read_manifest


@pytest.fixture
def folder(tmp_path):
    return packed_arrays(tmp_path / "shards", 8)


def test_a_manifest_survives_the_way_to_disk(folder, tmp_path):
    manifest = read_manifest(folder)
    (tmp_path / "copy").mkdir()
    manifest.write(tmp_path / "copy")
    assert read_manifest(tmp_path / "copy") == manifest
    assert manifest.rows == 8


def test_the_fingerprint_changes_with_any_pixel_and_stays_otherwise(tmp_path):
    folders = [
        packed_arrays(tmp_path / name, 8, seed=seed)
        for name, seed in zip("abc", (1, 1, 2), strict=True)
    ]
    a, b, c = (read_manifest(folder).fingerprint for folder in folders)
    assert a == b != c
    assert json.loads((folders[0] / "manifest.json").read_text())["fingerprint"] == a


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not finished"),
        ("{", "not readable JSON"),
        ("[1]", "not a manifest"),
        ('{"format": "other"}', "not a manifest"),
        (
            '{"format": "simclr-s2-shard", "format_version": 99}',
            "version 99.*pack the source again",
        ),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "word", ["layout", "codec", "mean", "bands", "provenance", "sha256", "format_version"]
)
def test_a_manifest_that_lost_a_word_is_refused_with_the_cure(tmp_path, word):
    path = packed_arrays(tmp_path / "shards", 4) / "manifest.json"
    path.write_text(path.read_text().replace(f'"{word}"', f'"{word}!"'))
    with pytest.raises(ValueError, match=r"damaged \(.*remove it|pack the source again"):
        read_manifest(path.parent)


def test_no_flip_of_a_bit_changes_what_a_manifest_says(tmp_path):
    path = packed_arrays(tmp_path / "shards", 4) / "manifest.json"
    sound, written = read_manifest(path.parent), path.read_bytes()
    dice, refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(written)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read_manifest(path.parent) == sound  # white space for other white space
        except ValueError:
            refused += 1
    assert refused > 200


def test_an_absent_label_set_is_answered_with_those_there_are(folder):
    with pytest.raises(ValueError, match=r"'eurosat'.*they hold: labels"):
        read_manifest(folder).layout.label_set("eurosat")
    with pytest.raises(ValueError, match="unlabelled"):
        ShardLayout(()).label_set("eurosat")


def test_a_label_set_is_single_or_multi():
    with pytest.raises(ValueError, match="'binary'"):
        LabelSet("x", "binary", ("a",))


def test_bigearthnet_takes_160000_bytes_a_sample(tmp_path):
    layout = read_manifest(packed_arrays(tmp_path / "s", 1, size_px=120, num_shards=1)).layout
    assert layout.sample_bytes == 160_000


def test_a_class_may_be_called_as_unlabelled_patches_are(tmp_path):
    folder = packed_arrays(tmp_path / "s", 8, classes=("unknown", "(unknown)", "field"))
    counts = read_manifest(folder).provenance["label_counts"]["labels"]
    assert counts == {"unknown": 3, "(unknown)": 3, "field": 2, "((unknown))": 0}
