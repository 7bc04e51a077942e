"""The band table: every spelling leads to one band, groups keep the order asked for."""

import pytest

from preprocess.bands import BANDS, L2A_BANDS, canonical_name, canonical_names, native_groups


@pytest.mark.parametrize(
    ("spelling", "band"),
    [("B2", "B02"), ("b02", "B02"), ("blue", "B02"), (" B8A ", "B8A"), ("b8a", "B8A"),
     ("B8", "B08"), ("nir08", "B8A"), ("nir", "B08"), ("swir22", "B12"), ("B9", "B09")],
)  # fmt: skip
def test_a_foreign_spelling_becomes_the_canonical_name(spelling, band):
    assert canonical_name(spelling) == band


def test_no_spelling_belongs_to_two_bands():
    spellings = [name.lower() for band in BANDS.values() for name in {band.name, *band.aliases}]
    assert len(spellings) == len(set(spellings))


def test_an_unknown_band_is_answered_with_the_valid_names():
    with pytest.raises(ValueError, match=r"'B13'.*B01.*B8A"):
        canonical_name("B13")


def test_one_band_in_two_spellings_is_refused():
    with pytest.raises(ValueError, match="B02"):
        canonical_names(["B2", "blue"])


def test_native_groups_are_finest_first_and_keep_the_order_asked_for():
    groups = native_groups(["B12", "B04", "B09", "B02", "B05"])
    assert list(groups.items()) == [
        ("b10", ["B04", "B02"]),
        ("b20", ["B12", "B05"]),
        ("b60", ["B09"]),
    ]


def test_l2a_has_twelve_bands_in_groups_of_four_six_and_two():
    assert [len(names) for names in native_groups(L2A_BANDS).values()] == [4, 6, 2]
