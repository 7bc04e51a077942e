"""Packed sources as one collection: every sample found, subsets stable, misfits refused."""

import numpy as np
import pytest
from make_data import packed_arrays

from preprocess.bands import L2A_BANDS
from preprocess.shards import open_readers, read_manifest
from simclr.data.dataset import open_dataset


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    first = packed_arrays(tmp_path_factory.mktemp("a"), 40, seed=1, source="first")
    second = packed_arrays(tmp_path_factory.mktemp("b"), 25, seed=2, source="second", num_shards=3)
    return [str(first), str(second)]


def test_every_sample_of_every_source_is_found(two_sources, tmp_path):
    dataset = open_dataset(two_sources, L2A_BANDS)
    assert dataset.num_samples == 65
    assert dataset.sources == ("first", "second")
    expected = []
    for folder in two_sources:
        path = type(tmp_path)(folder)
        readers = open_readers(path, read_manifest(path))
        expected += [reader.read(row) for reader in readers for row in range(reader.entry.rows)]
    buffers = {group.name: np.empty((65, *group.shape), np.uint16) for group in dataset.layouts[0]}
    samples = np.random.default_rng(0).permutation(65)
    dataset.read_into(samples, buffers, samples[::-1])
    for sample, place in zip(samples, samples[::-1], strict=True):
        pixels = expected[sample]
        assert all(np.array_equal(buffers[name][place], pixels[name]) for name in pixels)
    assert dataset.source.tolist() == [0] * 40 + [1] * 25
    assert dataset.index("id")[39] == "first-000039"


def test_splits_keep_the_numbers_of_their_samples(two_sources):
    whole = open_dataset(two_sources, L2A_BANDS)
    test = open_dataset(two_sources, L2A_BANDS, splits=["test"])
    assert set(test.index("split")) == {"test"}
    assert np.array_equal(test.sample_id, np.flatnonzero(whole.index("split") == "test"))
    assert np.array_equal(whole.labels("labels")[test.sample_id], test.labels("labels"))


def test_a_fraction_is_a_fixed_subset_of_each_seed(two_sources):
    first, again, other = (
        open_dataset(two_sources, L2A_BANDS, fraction=0.4, seed=seed).sample_id
        for seed in (1, 1, 2)
    )
    assert len(first) == 26
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    larger = open_dataset(two_sources, L2A_BANDS, fraction=0.8, seed=1).sample_id
    assert set(first) <= set(larger)


def test_only_the_groups_of_the_selected_bands_are_read(two_sources):
    dataset = open_dataset(two_sources, ["B04", "B03", "B02"])
    assert [group.name for group in dataset.layouts[0]] == ["b10"]
    assert list(dataset.normalisation["second"]) == ["B04", "B03", "B02"]


def test_normalisation_belongs_to_the_source(two_sources):
    table = open_dataset(two_sources, ["B02"]).normalisation
    assert table["first"]["B02"]["mean"] != table["second"]["B02"]["mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": []}, "shards is empty"),
        ({"shards": ["/nowhere"]}, "holds no manifest.json"),
        ({"bands": ["B10"]}, "band B10 not in the shards of first"),
        ({"splits": ["tset"]}, "no patches left"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(two_sources, change, message):
    arguments = {"shards": two_sources, "bands": L2A_BANDS, **change}
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(**arguments)
    assert "\n" not in str(caught.value)


def test_a_source_is_not_given_twice(two_sources):
    with pytest.raises(ValueError, match="source 'first' is given 2 times"):
        open_dataset([two_sources[0], two_sources[0]], L2A_BANDS)
