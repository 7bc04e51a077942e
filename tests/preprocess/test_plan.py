"""Bad inputs: each kind is left out with its own reason, the good ones around it are packed."""

import json
import shutil

import numpy as np
import pytest
from make_data import bigearthnet_v1, class_folders, write_geotiff

from preprocess.config import OnError, PackConfig, VerifyConfig
from preprocess.pack import PackError, pack
from preprocess.shards.format import PatchError
from preprocess.sources.bigearthnet import BigEarthNetV1Config
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.verify import verify

BANDS = ["B02", "B03", "B04", "B08"]
NUM_PATCHES = 6
BAD = 3  # in the middle of a shard


def band_of(folder, band="B03"):
    return folder / f"{folder.name}_{band}.tif"


def truncate(folder):
    band_of(folder).write_bytes(band_of(folder).read_bytes()[:900])


def scribble(folder):
    band_of(folder).write_bytes(b"no raster at all")


def remove_band(folder):
    band_of(folder).unlink()


def resize(folder):
    write_geotiff(band_of(folder), np.ones((1, 119, 120), np.uint16))


def retype(folder):
    write_geotiff(band_of(folder), np.ones((1, 120, 120), np.float32))


def add_a_band(folder):
    write_geotiff(band_of(folder), np.ones((2, 120, 120), np.uint16))


def move(folder):
    write_geotiff(band_of(folder), np.ones((1, 120, 120), np.uint16), crs="EPSG:32634")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def scribble_json(folder):
    (folder / f"{folder.name}_labels_metadata.json").write_text('{"labels": [')


def blank(folder):
    for band in BANDS:
        write_geotiff(band_of(folder, band), np.zeros((1, 120, 120), np.uint16))


FAULTS = {
    truncate: ("_B03.tif", "cannot be read as a raster"),
    scribble: ("_B03.tif", "cannot be read as a raster"),
    remove_band: ("_B03.tif", "missing"),
    resize: ("_B03.tif", "120 x 119 pixels"),
    retype: ("_B03.tif", "pixels are float32, not uint16"),
    add_a_band: ("_B03.tif", "2 band"),
    move: ("_B03.tif", "EPSG 32634"),
    empty: ("", "missing"),
    scribble_json: ("_labels_metadata.json", "not readable JSON"),
    blank: ("", "every pixel is nodata"),
}


def config_of(root, output, **settings):
    source = BigEarthNetV1Config(root=str(root), bands=BANDS)
    return PackConfig(source=source, output=str(output), **{"max_rejected": 0.2, **settings})


def lines_of(output):
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("spoil", FAULTS)
def test_each_kind_of_fault_is_left_out_with_its_reason(tmp_path, spoil):
    folders = bigearthnet_v1(tmp_path / "tree", NUM_PATCHES, bands=BANDS)
    spoil(folders[BAD])
    manifest = pack(config_of(tmp_path / "tree", tmp_path / "out"))
    (rejected,) = lines_of(tmp_path / "out")
    file, reason = FAULTS[spoil]
    assert rejected["id"] == folders[BAD].name
    assert rejected["file"].startswith(folders[BAD].name)
    assert file in rejected["file"]
    assert reason in rejected["reason"]
    assert manifest.rows == NUM_PATCHES - 1
    assert manifest.provenance["reasons_of_rejection"] == {rejected["reason"]: 1}
    assert verify(VerifyConfig(shards=str(tmp_path / "out"))).ok


@pytest.mark.parametrize("spoil", FAULTS)
def test_each_kind_of_fault_stops_packing_if_asked_to(tmp_path, spoil):
    folders = bigearthnet_v1(tmp_path / "tree", NUM_PATCHES, bands=BANDS)
    spoil(folders[BAD])
    config = config_of(tmp_path / "tree", tmp_path / "out", on_error=OnError.stop)
    with pytest.raises(PatchError, match=folders[BAD].name):
        pack(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.fixture
def repeated(tmp_path):
    """Return the settings of a source of six files and a seventh with an id that is taken."""
    path = class_folders(tmp_path / "tree", num_bands=2)[0]
    path.with_suffix(".tiff").write_bytes(path.read_bytes())
    source = GeotiffConfig(root=str(tmp_path / "tree"), file_bands=["B02", "B03"], boa_offset=0)
    return PackConfig(source=source, output=str(tmp_path / "out"), max_rejected=0.2)


def test_of_two_files_with_one_id_the_second_is_left_out_and_both_are_named(repeated, tmp_path):
    manifest = pack(repeated)
    assert manifest.rows == 6
    found, left_out = (manifest.provenance[f"patches_{name}"] for name in ("found", "rejected"))
    assert (found, left_out) == (7, 1)
    (rejected,) = lines_of(tmp_path / "out")
    assert rejected["file"].endswith("Forest_1.tiff")
    assert "Forest_1 appears twice" in rejected["reason"]
    assert "Forest_1.tif has it" in rejected["reason"]
    assert pack(repeated) == manifest


def test_an_id_that_is_there_twice_counts_against_the_limit(repeated):
    repeated.max_rejected = 0.1
    with pytest.raises(PackError, match=r"1 of 7 patches are bad.*appears twice"):
        pack(repeated)


def test_an_id_that_is_there_twice_stops_packing_if_asked_to(repeated, tmp_path):
    repeated.on_error = OnError.stop
    with pytest.raises(PatchError, match=r"Forest_1\.tiff: id .*Forest_1 appears twice"):
        pack(repeated)
    assert not (tmp_path / "out" / "packing" / "plan.jsonl").exists()


def test_a_file_with_other_bands_than_the_source_is_left_out(tmp_path):
    paths = class_folders(tmp_path / "tree", num_bands=2)
    write_geotiff(paths[4], np.ones((3, 64, 64), np.uint16))
    source = GeotiffConfig(root=str(tmp_path / "tree"), file_bands=["B02", "B03"], boa_offset=0)
    config = PackConfig(source=source, output=str(tmp_path / "out"), max_rejected=0.2)
    assert pack(config).rows == 5
    (rejected,) = lines_of(tmp_path / "out")
    assert rejected["file"].endswith(paths[4].name)
    assert "3" in rejected["reason"]
    assert "2" in rejected["reason"]
