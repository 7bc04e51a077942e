"""Scenes from a STAC search: what is kept of them packs to the same bytes as the whole of them."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from make_scenes import BOX, DECIMATION, REAL, REAL_BOX, real_scene, tree
from stac_server import Server

from preprocess.config import FetchConfig, PackConfig, SelectConfig
from preprocess.fetch import fetch, plan
from preprocess.fetch.http import FetchError
from preprocess.pack import pack
from preprocess.radiometry import DARK_BANDS
from preprocess.raster import read_coarse
from preprocess.sources.l2a_files import CogL2AConfig

REAL_BANDS = ["B02", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12", "B01", "B09"]
SUMMER = "S2A_10SFH_20190715_0_L2A"
WINTER = "S2A_10SFH_20190115_0_L2A"


def pack_cogs(root: Path, output: Path, box, bands=()) -> dict[str, bytes]:
    """Pack a folder of scenes; return all that is in the folder of shards, but for the source."""
    source = CogL2AConfig(
        root=str(root), decimation=DECIMATION, bands=list(bands), select=SelectConfig(boxes=[box])
    )
    pack(PackConfig(source=source, output=str(output)), progress=False)
    shards = {name: data for name, data in tree(output).items() if name.endswith(".h5")}
    return shards | {"selection": (output / "selection.csv").read_bytes()}


def rows_of(output: Path) -> dict[str, dict[str, str]]:
    with (output / "scenes.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_windows_pack_to_the_same_bytes_as_whole_scenes(settings, tmp_path):
    summary = fetch(settings("windows"))
    whole = fetch(settings("whole", whole_scenes=True))
    assert summary.bytes < whole.bytes / 2
    windows = pack_cogs(tmp_path / "windows", tmp_path / "a", BOX)
    assert windows == pack_cogs(tmp_path / "whole", tmp_path / "b", BOX)
    assert any(len(data) > 1000 for data in windows.values())


def test_windows_show_packing_the_same_dark_pixels_as_the_whole_scene(settings, tmp_path):
    fetch(settings("windows"))
    fetch(settings("whole", whole_scenes=True))
    for name in [*DARK_BANDS, "SCL"]:
        windows, whole = (tmp_path / kind / SUMMER / f"{name}.tif" for kind in ("windows", "whole"))
        assert (read_coarse(windows, 183) == read_coarse(whole, 183)).all(), name


def test_windows_of_a_real_scene_pack_to_the_same_bytes(real_data, tmp_path):
    items = [real_scene(real_data, tmp_path / "served")]
    with Server(tmp_path / "served", items) as server:
        for whole in (False, True):
            config = FetchConfig(
                url=f"{server.url}/stac", output=str(tmp_path / str(whole)), boxes=[REAL_BOX],
                bands=REAL_BANDS, whole_scenes=whole,
            )  # fmt: skip
            fetch(config)
    windows = pack_cogs(tmp_path / "False", tmp_path / "a", REAL_BOX, REAL_BANDS)
    assert windows == pack_cogs(tmp_path / "True", tmp_path / "b", REAL_BOX, REAL_BANDS)
    whole = tree(tmp_path / "True" / REAL)
    source = tree(next((real_data / "earth_search_cog").rglob(REAL)))
    assert all(whole[f"{band}.tif"] == source[f"{band}.tif"] for band in REAL_BANDS)


def test_ground_outside_the_area_is_nodata_to_packing(settings, tmp_path):
    fetch(settings("out"))
    everywhere = [-123.0, 36.0, -120.0, 39.0]
    few = pack_cogs(tmp_path / "out", tmp_path / "a", BOX)
    all_there_is = pack_cogs(tmp_path / "out", tmp_path / "b", everywhere)
    few.pop("selection"), all_there_is.pop("selection")
    assert few == all_there_is


def test_every_scene_has_a_row_that_says_why_it_is_not_taken(settings, server, tmp_path):
    fetch(settings(tiles=["10SFH"], relative_orbits=[113]))
    rows = rows_of(tmp_path / "out")
    assert rows[SUMMER]["taken"] == "yes"
    assert int(rows[SUMMER]["patches"]) == 72
    assert rows["S2A_10SFH_20190720_0_L2A"]["reason"] == "cloud cover 60 %, above 20 %"
    assert rows["S2A_10SGH_20190715_0_L2A"]["reason"] == "a tile that was not requested"
    sizes = sum(path.stat().st_size for path in (tmp_path / "out" / SUMMER).glob("*.tif"))
    assert int(rows[SUMMER]["bytes"]) == sizes


def test_an_item_without_a_band_or_with_a_wrong_raster_is_left_out_with_its_reason(
    settings, server, tmp_path
):
    del server.state.items[0]["assets"]["green"]
    server.state.items[1]["assets"]["green"]["href"] = "{base}/files/" + f"{SUMMER}/SCL.tif"
    server.state.items[1]["assets"]["scl"]["href"] = "{base}/files/" + f"{SUMMER}/nothing.tif"
    with pytest.raises(FetchError, match=r"nothing\.tif: HTTP 404"):
        fetch(settings())
    server.state.items[1]["assets"]["scl"]["href"] = "{base}/files/" + f"{SUMMER}/text.tif"
    (server.state.root / SUMMER / "text.tif").write_text("this is no raster, of course")
    fetch(settings())
    rows = rows_of(tmp_path / "out")
    assert rows[WINTER]["reason"] == "its item has no GeoTIFF of B03"
    assert rows[SUMMER]["reason"] == "cannot be read: not a TIFF: it begins with other bytes"


@pytest.mark.parametrize("methods", [("POST",), ("GET",), ("GET", "POST")])
def test_a_search_is_read_to_its_last_page_by_either_method(settings, server, tmp_path, methods):
    server.state.methods = methods
    config = settings(boxes=[BOX, [-121.60, 37.60, -121.50, 37.70]])
    assert plan(config).found == 4
    assert not (tmp_path / "out").exists()


def test_only_the_newest_processing_of_an_acquisition_is_taken(settings, server, tmp_path):
    item = json.loads(json.dumps(server.state.items[1]))
    item["id"] = SUMMER.replace("_0_L2A", "_1_L2A")
    item["properties"]["s2:product_uri"] = item["properties"]["s2:product_uri"].replace(
        "N0213", "N0500"
    )
    server.state.items.append(item)
    fetch(settings())
    rows = rows_of(tmp_path / "out")
    assert rows[SUMMER]["reason"] == "another processing of the same acquisition is taken"
    assert rows[item["id"]]["taken"] == "yes"


def test_a_polygon_with_a_hole_takes_the_squares_between_its_rings(settings, tmp_path):
    def ring(west, south, east, north):
        return [[west, south], [east, south], [east, north], [west, north], [west, south]]

    path = tmp_path / "area.geojson"
    hole = [BOX[0] + 0.03, BOX[1] + 0.03, BOX[2] - 0.03, BOX[3] - 0.03]
    geometry = {"type": "Polygon", "coordinates": [ring(*BOX), ring(*hole)]}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    count = {
        "box": plan(settings()).patches,
        "hole": plan(settings(boxes=[hole])).patches,
        "between": plan(settings(boxes=[], geojson=str(path))).patches,
    }
    assert count["between"] == count["box"] - count["hole"] > 0 < count["hole"]


def test_a_second_start_fetches_nothing_and_a_cut_file_is_fetched_again(settings, server, tmp_path):
    fetch(settings())
    before = tree(tmp_path / "out")
    server.state.requests.clear()
    assert fetch(settings()).missing_bytes == 0
    assert not [path for path in server.state.requests if "/files/S2A_10SFH" in path]
    with (tmp_path / "out" / SUMMER / "B04.tif").open("r+b") as file:
        file.truncate(100)
    assert fetch(settings()).missing_bytes > 0
    assert tree(tmp_path / "out") == before


def test_a_larger_area_is_fetched_anew_and_replaces_the_smaller_one(settings, tmp_path):
    larger = [[-121.75, 37.5, -121.5, 37.7]]
    fetch(settings())
    fetch(settings(boxes=larger))
    fetch(settings("at-once", boxes=larger))
    assert tree(tmp_path / "out") == tree(tmp_path / "at-once")


def test_a_dry_run_tells_exactly_what_a_fetch_reads(settings, server, tmp_path):
    summary = plan(settings())
    assert (summary.found, summary.taken, summary.patches) == (4, 2, 144)
    assert summary.bytes_per_s > 0
    server.state.sent = 0
    fetch(settings())
    headers = 2 * 27 * 32_800  # of 27 rasters, to plan and to fetch
    assert summary.bytes <= server.state.sent <= summary.bytes + headers


def test_too_much_is_refused_with_the_value_to_give(settings, tmp_path):
    with pytest.raises(ValueError, match=r"more than max_gb=1e-06; set max_gb=1, or narrow area"):
        fetch(settings(max_gb=1e-6))
    assert not list((tmp_path / "out").glob("S2*"))


def test_a_folder_of_somebody_else_is_not_touched(settings, tmp_path):
    (tmp_path / "out" / SUMMER).mkdir(parents=True)
    with pytest.raises(FetchError, match="simclr-fetch did not write it"):
        fetch(settings())
    shutil.rmtree(tmp_path / "out" / SUMMER)
    fetch(settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": []}, "what=stac needs an area"),
        ({"output": ""}, "output is empty"),
        ({"geojson": "/nowhere.json"}, "geojson: /nowhere.json cannot be read"),
    ],
)
def test_settings_that_name_nothing_are_refused(server, changes, message):
    base = {"url": f"{server.url}/stac", "output": "/nowhere", "boxes": [BOX]}
    with pytest.raises(ValueError, match=message):
        fetch(FetchConfig(**{**base, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[1, 2, 3]]}, r"boxes holds \[1, 2, 3\]"),
        ({"dates": ["2019-02-01/2019-01-01"]}, "dates holds '2019-02-01/2019-01-01'"),
        ({"dates": ["summer"]}, "dates holds 'summer'"),
        ({"tiles": ["T10SFH"]}, "tiles names"),
        ({"relative_orbits": [144]}, "count from 1 to 143"),
        ({"bands": ["B10x"]}, "B10x"),
        ({"streams": 0}, "streams is 0"),
        ({"max_cloud": 101}, "max_cloud is 101"),
    ],
)
def test_values_are_checked_when_settings_are_made(changes, message):
    with pytest.raises(ValueError, match=message):
        FetchConfig(output="x", **changes)
