"""Band statistics: exact, mergeable, without nodata and saturated pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocess.shards import GroupLayout, ShardLayout
from preprocess.shards.manifest import BandStatistics, empty_histogram, summarise
from preprocess.shards.writer import count_block

PIXELS = hnp.arrays(
    np.uint16,
    st.tuples(st.integers(1, 3), st.just(2), st.integers(1, 5), st.integers(1, 5)),
    elements=st.one_of(st.integers(0, 65535), st.sampled_from([0, 65535, 1, 7])),
)


LAYOUT = ShardLayout((GroupLayout("b10", ("B02", "B03"), 5, 10.0),))


def counted(*blocks):
    histogram = empty_histogram(2)
    for block in blocks:
        count_block(histogram, {"b10": block}, LAYOUT)
    return histogram


@given(PIXELS)
def test_statistics_equal_numpy_on_the_valid_pixels(pixels):
    for band, counts in enumerate(counted(pixels)):
        values = pixels[:, band].ravel().astype(np.float64)
        valid = values[(values != 0) & (values != 65535)]
        found = summarise(counts)
        assert found.count == valid.size
        assert found.nodata_fraction == (values == 0).mean()
        if valid.size:
            assert found.mean == pytest.approx(valid.mean(), rel=1e-12)
            assert found.std == pytest.approx(valid.std(), rel=1e-9, abs=1e-9)
            assert (found.minimum, found.maximum) == (valid.min(), valid.max())
            assert found.clipped_fraction == (valid == 1).mean()
            for percent in (1, 99):
                expected = np.percentile(valid, percent, method="inverted_cdf")
                assert getattr(found, f"percentile_{percent}") == expected


@given(PIXELS, PIXELS)
def test_counts_of_parts_add_up_to_the_counts_of_the_whole(first, second):
    assert np.array_equal(counted(first, second), counted(first) + counted(second))


def test_a_band_of_nodata_has_count_zero_and_zeros():
    found = summarise(counted(np.zeros((1, 2, 3, 3), np.uint16))[0])
    assert found == BandStatistics(0, 0.0, 0.0, 0, 0, 0, 0, 1.0, 0.0)


def test_a_whole_archive_does_not_overflow():
    # BigEarthNet: 590,326 patches of 14,400 pixels, all at the highest valid value
    counts = empty_histogram(1)[0]
    counts[65534] = 590_326 * 14_400
    found = summarise(counts)
    assert (found.mean, found.std, found.percentile_99) == (65534.0, 0.0, 65534)
