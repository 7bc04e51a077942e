"""Digital numbers from any type and unit: exact both ways, gaps kept apart, nonsense refused."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocess import radiometry
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
    hnp.arrays(np.float64, (2, 4, 4), elements=st.floats(0, 60000)),
    st.floats(-1900, 0),
    st.sampled_from([None, -9999.0, 0.0]),
)
def test_nodata_is_0_and_nothing_measured_is(values, negative, mark):
    values[0, 0, 0], values[1, 0, 0], values[1, 1, 1] = np.nan, mark or 0.0, 5000.0
    values[0, 2:], values[0, 1, 1] = 100.0, negative
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


def test_negative_numbers_are_stored_as_1_and_counted(caplog, monkeypatch):
    monkeypatch.setattr(radiometry, "_negative", Counter())
    values = np.full((1, 10, 10), 500, np.int16)
    values[0, 0, :3] = (-1, -20, -1500)
    for _ in range(11):
        stored = to_digital_numbers(values, [None], DN)
    assert stored[0, 0].tolist() == [1, 1, 1, *[500] * 7]
    said = [record.message for record in caplog.records]
    assert [text.split(": ")[1] for text in said] == [
        "3 pixels in 1 files so far",
        "30 pixels in 10 files so far",
    ]


def test_a_patch_of_many_negative_numbers_is_refused():
    values = np.full((1, 10, 10), 500, np.int16)
    values[0, :2] = -999
    with pytest.raises(ValueError, match=r"20% of its numbers are negative.*source\.nodata=-999"):
        to_digital_numbers(values, [None], DN)
    assert (to_digital_numbers(values, [-999], DN)[0, :2] == 0).all()


def test_reflectances_are_read_by_the_scale_and_offset_of_the_file():
    values = np.array([[[3000, 0], [2500, 1100]]], np.uint16)
    stored = to_digital_numbers(values, [0], REFLECTANCE, [(0.0001, -0.1)])
    assert stored.tolist() == [[[2000, 0], [1500, 100]]]
