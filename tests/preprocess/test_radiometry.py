"""Radiometry: the offset decided and taken out to the bit; any type and unit stored exactly."""

from collections import Counter

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocess import radiometry
from preprocess.radiometry import (
    Values,
    baseline_of,
    contradiction,
    decide,
    harmonise,
    offset_of,
    to_digital_numbers,
)

PAIR = {
    "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419": -1000,
    "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543": 0,
}


@given(hnp.arrays(np.uint16, 50))
def test_nodata_and_saturation_keep_their_value_and_nothing_else_takes_it(numbers):
    stored = harmonise(numbers, -1000)
    assert ((stored == 0) == (numbers == 0)).all()
    assert ((stored == 65535) == (numbers == 65535)).all()
    usual = (numbers > 1000) & (numbers < 65535)
    assert (stored[usual] == numbers[usual] - 1000).all()
    assert (stored[(numbers > 0) & (numbers <= 1000)] == 1).all()


@pytest.mark.parametrize(
    ("baseline", "offset"),
    [("02.12", 0), ("03.01", 0), ("04.00", -1000), ("05.09", -1000), ("99.99", None), ("", None)],
)
def test_the_baseline_decides_and_99_99_tells_nothing(baseline, offset):
    assert offset_of(baseline) == offset


def test_a_latitude_in_a_name_is_no_baseline():
    assert baseline_of("S2B_MSIL2A_20200223T032739_N0214_R018_T48QUE") == "02.14"
    assert baseline_of("site_N3812_W12145") == baseline_of("fields_N0212_E01030/B02") == ""


def test_nobody_saying_anything_is_an_error_with_the_setting():
    with pytest.raises(ValueError, match=r"set source\.boa_offset=-1000 if .*boa_offset=0 if"):
        decide("P", {"xml": None, "name": None}, None)


def test_the_strongest_authority_is_named_and_a_conflict_refused():
    assert decide("P", {"xml": -1000, "name": -1000}, None).authority == "xml"
    assert decide("P", {"xml": None, "name": 0}, None).authority == "name"
    assert decide("P", {"xml": None, "name": None}, 0).authority == "user"
    with pytest.raises(ValueError, match="name says that the offset is -1000, xml says 0"):
        decide("P", {"xml": 0, "name": -1000}, None)
    with pytest.raises(ValueError, match="user says that the offset is 0, name says -1000"):
        decide("P", {"name": -1000}, 0)
    assert decide("P", {"name": -1000}, 0, override=True).value == 0


def cell(real_data, product):
    (folder,) = (real_data / "major_tom_l2a").glob(f"S2L2A/*/*/{product}")
    pixels = {}
    for band in ("B02", "B04", "B11", "B12"):
        with rasterio.open(folder / f"{band}.tif") as dataset:
            pixels[band] = dataset.read(1)
    return pixels


@pytest.mark.parametrize(("product", "offset"), PAIR.items())
def test_both_real_cells_are_dark_and_physical_after_their_own_rule(real_data, product, offset):
    for values in cell(real_data, product).values():
        darkest = np.percentile(harmonise(values, offset), 1)
        assert 0 < darkest < 1300  # a hazy scene without shadow is the brighter of the two
    assert contradiction(offset, cell(real_data, product), None) == ""


def test_a_wrong_declaration_of_either_real_cell_is_a_contradiction(real_data):
    with_offset, without = PAIR
    by_name = {"name": offset_of(baseline_of(with_offset))}
    with pytest.raises(ValueError, match="user says that the offset is 0, name says -1000"):
        decide(with_offset, by_name, 0)
    found = contradiction(-1000, cell(real_data, without), None)
    assert "no offset seems to be in the files" in found
    with pytest.raises(ValueError, match="neither metadata nor name"):
        decide(without, {"name": offset_of(baseline_of(without))}, None)


def test_bright_desert_without_dark_ground_contradicts_nothing(real_data):
    (folder,) = (real_data / "earth_search_cog").glob("**/S2A_29RKH_20200219_0_L2A")
    with rasterio.open(folder / "SCL.tif") as dataset:
        classes = dataset.read(1)
    pixels = {}
    for band in ("B02", "B04", "B11", "B12"):
        with rasterio.open(folder / f"{band}.tif") as dataset:
            pixels[band] = dataset.read(1, out_shape=classes.shape)
    assert contradiction(0, pixels, classes) == ""


@pytest.mark.slow
def test_water_and_shadow_of_a_real_product_contradict_a_missing_offset(real_data):
    (folder,) = (real_data / "sentinel2_safe").glob("*.SAFE/GRANULE/*/IMG_DATA/R60m")
    read = {}
    for band in ("B02", "B04", "B11", "B12", "SCL"):
        with rasterio.open(next(folder.glob(f"*_{band}_60m.jp2"))) as dataset:
            read[band] = dataset.read(1)
    classes = read.pop("SCL")
    assert contradiction(-1000, read, classes) == ""
    assert "an offset seems to be in the files" in contradiction(0, read, classes)


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
    with pytest.raises(ValueError, match=r"which is not a reflectance"):
        to_digital_numbers(values, [float(lowest), None], REFLECTANCE)


@pytest.mark.parametrize("mark", [-9999.0, 70000.0, 900.5, float("nan")])
def test_a_mark_that_the_type_cannot_hold_marks_nothing(mark):
    values = np.full((1, 2, 2), 900, np.uint16)
    values[0, 0] = 55537, 4464  # what a cast makes of -9999 and 70000
    assert np.array_equal(to_digital_numbers(values, [mark], DN), values)


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
