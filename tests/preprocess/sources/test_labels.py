"""Classes of BigEarthNet: counts, order and mapping against an independent table."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.sources.labels import (
    CLASSES_19,
    CLASSES_43,
    CLC_CODES,
    IRRIGATION_EXTENDED,
    IRRIGATION_REGULAR,
    TO_19,
    labels_of_19,
    labels_of_43,
)


def test_classes_orders_and_mappings_equal_the_cross_checked_table(real_data):
    table = json.loads((real_data / "corine_labels.json").read_text())
    rows = sorted(table["classes_43"], key=lambda row: row["index_43"])
    assert [row["name"] for row in rows] == list(CLASSES_43)
    assert {row["name"]: row["clc_code"] for row in rows} == CLC_CODES
    assert {row["name"]: row["name_19"] or "" for row in rows} == TO_19
    assert table["names_19_original_order"] == list(CLASSES_19)
    sets = table["irrigation_label_sets"]
    assert set(sets["regular"]["names_43"]) == IRRIGATION_REGULAR
    assert set(sets["extended"]["names_43"]) == IRRIGATION_EXTENDED


def test_eleven_classes_are_dropped_and_twenty_two_merged():
    names_19 = list(TO_19.values())
    assert names_19.count("") == 11
    assert sum(names_19.count(name) > 1 for name in names_19 if name) == 22


@given(st.sets(st.sampled_from(CLASSES_43), min_size=1))
def test_every_labelling_follows_from_the_43_names(names):
    labels = labels_of_43(sorted(names))
    assert set(labels["bigearthnet43"]) == names
    assert set(labels.get("bigearthnet19", ())) == {TO_19[name] for name in names} - {""}
    regular = labels["irrigation_regular"] == ("irrigated",)
    extended = labels["irrigation_extended"] == ("irrigated",)
    assert regular == bool(names & IRRIGATION_REGULAR)
    assert extended == bool(names & IRRIGATION_EXTENDED)
    assert extended or not regular


def test_a_patch_of_dropped_classes_has_no_answer_among_the_19():
    assert "bigearthnet19" not in labels_of_43(["Bare rock", "Airports"])


def test_merged_classes_are_named_once():
    both = ["Continuous urban fabric", "Discontinuous urban fabric"]
    assert labels_of_43(both)["bigearthnet19"] == ("Urban fabric",)


@pytest.mark.parametrize(
    ("mapping", "names"),
    [
        (labels_of_43, ["Glaciers and perpetual snow"]),
        (labels_of_43, ["Transitional woodland, shrub"]),
        (labels_of_19, ["Transitional woodland/shrub"]),
        (labels_of_19, ["pastures"]),
    ],
)
def test_a_name_of_the_other_nomenclature_is_refused(mapping, names):
    with pytest.raises(ValueError, match=names[0]):
        mapping(names)


@pytest.mark.parametrize("mapping", [labels_of_43, labels_of_19])
def test_no_name_is_refused(mapping):
    with pytest.raises(ValueError, match="no class"):
        mapping([])
