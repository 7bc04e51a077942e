"""The offset: decided by metadata, name or user; doubted by dark pixels; taken out to the bit."""

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis.extra import numpy as hnp

from preprocess.radiometry import baseline_of, contradiction, decide, harmonise, offset_of

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
