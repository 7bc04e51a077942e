"""STAC items: what they say of the offset, and what they leave open."""

import json

import pytest

from preprocess.sources import open_source
from preprocess.sources.l2a_files import CogL2AConfig, baseline_in, claims_of, stated_time


def item_of(**properties):
    return {"type": "Feature", "properties": properties, "assets": {}}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (item_of(**{"earthsearch:boa_offset_applied": True}), 0),
        (item_of(**{"earthsearch:boa_offset_applied": False}), -1000),
        (item_of(), None),
    ],
)
def test_only_metadata_tells_whether_an_archive_took_the_offset_out(item, expected):
    said = [value for value in claims_of(item, "05.00").values() if value is not None]
    assert said == ([] if expected is None else [expected])
    assert claims_of(item_of(), "02.14")["name"] == 0


@pytest.mark.parametrize(
    ("stated", "baseline", "offset"),
    [
        ("04.00", "04.00", None),  # the archive may have removed it since
        (4.0, "04.00", None),
        (5.1, "05.10", None),
        ("2.14", "02.14", 0),
        ("N0214", "", None),
        (None, "", None),
    ],
)
def test_a_baseline_is_read_as_a_number_or_left_open(stated, baseline, offset):
    item = item_of(**{"s2:processing_baseline": stated})
    assert baseline_in("S2A_29RKH_20200219_0_L2A_", item["properties"]) == baseline
    assert claims_of(item, baseline)["name"] == offset


def test_an_asset_states_its_offset_in_reflectance():
    item = item_of()
    item["assets"]["red"] = {"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
    assert claims_of(item, "05.09")["stac:raster:bands"] == -1000


def test_a_scene_without_rasters_is_refused_by_the_first_band_that_is_missing(tmp_path):
    folder = tmp_path / "S2A_29RKH_20200219_0_L2A"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"S2A_29RKH_20200219_0_L2A holds no B02 at 10 m"):
        list(open_source(CogL2AConfig(root=str(folder))).discover())


def test_a_band_in_two_spellings_is_refused(tmp_path):
    folder = tmp_path / "S2A_29RKH_20200219_0_L2A"
    folder.mkdir()
    for name in ("B02.tif", "blue.tif"):
        (folder / name).touch()
    with pytest.raises(ValueError, match=r"0_L2A holds B02 twice: B02\.tif and blue\.tif"):
        list(open_source(CogL2AConfig(root=str(folder))).discover())


def test_the_item_of_another_scene_is_refused(tmp_path):
    folder = tmp_path / "S2A_29RKH_20200219_0_L2A"
    folder.mkdir()
    name = "S2B_MSIL2A_20210101T184921_N0214_R113_T10SFH_20210101T184921"
    item = item_of(**{"sentinel:product_id": name})
    (folder / "item.json").write_text(json.dumps(item))
    with pytest.raises(ValueError, match=rf"20200219_0_L2A: its STAC item is of {name}"):
        list(open_source(CogL2AConfig(root=str(folder))).discover())


@pytest.mark.parametrize("end", ["Z", ".024Z", "+00:00", ".024+00:00"])
def test_one_time_is_one_text_in_all_archives(end):
    assert stated_time({"datetime": f"2020-02-19T11:34:25{end}"}) == "2020-02-19T11:34:25Z"
