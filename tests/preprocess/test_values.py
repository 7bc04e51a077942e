"""Digital numbers from any type and unit: exact both ways, gaps kept apart, nonsense refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocess.radiometry import Values, to_digital_numbers

ALL = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
DN, REFLECTANCE = Values.digital_numbers, Values.reflectance


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "float32", "float64"])
def test_every_digital_number_survives_every_type(dtype):
    assert np.array_equal(to_digital_numbers(ALL.astype(dtype), [None], DN), ALL)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_digital_number_survives_as_reflectance(dtype):
    # up to 2: half of the numbers above it would speak for digital numbers
    numbers = ALL[:, :78]
    reflectance = (numbers / 10000).astype(dtype)
    assert np.array_equal(to_digital_numbers(reflectance, [None], REFLECTANCE), numbers)


@given(
    hnp.arrays(np.float64, (2, 4, 4), elements=st.floats(-1900, 60000)),
    st.sampled_from([None, -9999.0, 0.0]),
)
def test_nodata_is_0_and_nothing_measured_is(values, mark):
    values[0, 0, 0], values[1, 0, 0], values[1, 1, 1] = np.nan, mark or 0.0, 5000.0
    stored = to_digital_numbers(values, [mark, mark], DN)
    holes = np.isnan(values) | (values == 0) | (values == mark)
    assert ((stored == 0) == holes).all()
    measured = values[~holes]
    assert np.abs(stored[~holes] - np.clip(measured, 1, None)).max() <= 0.5


def test_marks_are_compared_in_the_type_of_the_file_and_band_by_band():
    lowest = np.finfo(np.float32).min
    values = np.full((2, 2, 2), 0.1, np.float32)
    values[:, 0, 0] = lowest
    stored = to_digital_numbers(values, [float(lowest), float(lowest)], REFLECTANCE)
    assert stored[:, 0].tolist() == [[0, 1000], [0, 1000]]
    with pytest.raises(ValueError, match=r"which no reflectance is"):
        to_digital_numbers(values, [float(lowest), None], REFLECTANCE)


def test_an_image_without_data_is_all_nodata_in_any_unit():
    for unit in Values:
        assert not to_digital_numbers(np.full((1, 3, 3), np.nan, np.float32), [None], unit).any()


@pytest.mark.parametrize("dtype", ["uint8", "complex64", "int64"])
def test_types_that_hold_no_reflectances_are_named(dtype):
    with pytest.raises(ValueError, match=f"pixels are {dtype}"):
        to_digital_numbers(np.ones((1, 2, 2), dtype), [None], DN)
