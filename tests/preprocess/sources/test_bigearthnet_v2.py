"""BigEarthNet v2: pixels to the bit, labels and splits from the tables, places shared with v1."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from make_data import write_geotiff

from preprocess.bands import BANDS, L2A_BANDS
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import PatchError
from preprocess.sources import open_source
from preprocess.sources.bigearthnet import BigEarthNetV2Config
from preprocess.sources.labels import CLC_CODES, CORINE, TO_19, shares_of_codes

PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"


def write_v2(root, ids=(f"{PRODUCT}_04_55", f"{PRODUCT}_26_57")):
    for name in ids:
        for band in L2A_BANDS:
            resolution = BANDS[band].ground_resolution_m
            pixels = np.full((1, 1200 // resolution, 1200 // resolution), 7, np.uint16)
            path = root / "BigEarthNet-S2" / name.rsplit("_", 2)[0] / name / f"{name}_{band}.tif"
            write_geotiff(path, pixels, resolution_m=resolution, nodata=0)
    return root


def write_table(path, rows, **replaced):
    columns = {
        "patch_id": [row[0] for row in rows],
        "split": [row[1] for row in rows],
        "labels": [row[2] for row in rows],
    }
    pq.write_table(pa.table({**columns, **replaced}), path)


def test_pixels_labels_and_splits_equal_an_independent_read(real_data):
    root = real_data / "bigearthnet_v2"
    source = open_source(BigEarthNetV2Config(root=str(root)))
    layout = source.layout()
    refs = list(source.discover())
    assert [ref.id[-5:] for ref in refs] == ["75_43", "89_18"]
    rows = {
        row["patch_id"]: row
        for row in pq.read_table(
            root / "metadata.parquet", filters=[("patch_id", "in", [ref.id for ref in refs])]
        ).to_pylist()
    }
    for ref in refs:
        patch = source.read(ref, layout)
        assert patch.split == rows[ref.id]["split"]
        assert sorted(patch.labels["bigearthnet19"]) == sorted(rows[ref.id]["labels"])
        folder = root / "BigEarthNet-S2" / patch.product / ref.id
        for group in layout.groups:
            for channel, band in enumerate(group.bands):
                with rasterio.open(folder / f"{ref.id}_{band}.tif") as dataset:
                    assert np.array_equal(patch.pixels[group.name][channel], dataset.read(1))


def test_the_same_ground_has_the_same_place_as_in_v1(tmp_path):
    write_table(
        write_v2(tmp_path) / "metadata.parquet", [(f"{PRODUCT}_04_55", "train", ["Pastures"])]
    )
    source = open_source(BigEarthNetV2Config(root=str(tmp_path)))
    patch = source.read(next(iter(source.discover())), source.layout())
    assert (patch.place, patch.tile, patch.product) == ("33UUP_04_55", "33UUP", PRODUCT)
    assert patch.acquired == "2017-06-13T10:10:31Z"
    assert (patch.offset, patch.offset_authority) == (0, "source")


def test_only_listed_patches_are_packed_and_a_second_table_adds_its_own(tmp_path):
    first, second = f"{PRODUCT}_04_55", f"{PRODUCT}_26_57"
    write_v2(tmp_path)
    write_table(tmp_path / "metadata.parquet", [(first, "train", ["Pastures"])])
    write_table(tmp_path / "snow.parquet", [(second, "test", None)])
    one = open_source(BigEarthNetV2Config(root=str(tmp_path)))
    both = open_source(
        BigEarthNetV2Config(root=str(tmp_path), tables=["metadata.parquet", "snow.parquet"])
    )
    assert [ref.id for ref in one.discover()] == [first]
    assert [(ref.id, ref.split, ref.labels) for ref in both.discover()] == [
        (first, "train", {"bigearthnet19": ("Pastures",)}),
        (second, "test", {}),
    ]


def test_without_pyarrow_its_installation_is_named(tmp_path, monkeypatch):
    write_v2(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        list(open_source(BigEarthNetV2Config(root=str(tmp_path))).discover())


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_a_wrong_root_says_what_was_sought(tmp_path, root):
    with pytest.raises(ValueError, match=r"not a folder|BigEarthNet-S2"):
        list(open_source(BigEarthNetV2Config(root=str(tmp_path / root))).discover())


def test_an_absent_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.parquet"):
        list(open_source(BigEarthNetV2Config(root=str(write_v2(tmp_path)))).discover())


def test_a_file_that_is_no_table_is_named(tmp_path):
    (write_v2(tmp_path) / "metadata.parquet").write_text("patch_id,split\n")
    with pytest.raises(ValueError, match=r"metadata\.parquet cannot be used"):
        list(open_source(BigEarthNetV2Config(root=str(tmp_path))).discover())


def test_a_table_without_a_column_is_named(tmp_path):
    pq.write_table(pa.table({"patch_id": ["x"]}), write_v2(tmp_path) / "metadata.parquet")
    with pytest.raises(ValueError, match=r"metadata\.parquet cannot be used \(.*split"):
        list(open_source(BigEarthNetV2Config(root=str(tmp_path))).discover())


def test_a_class_of_the_other_nomenclature_is_named(tmp_path):
    rows = [(f"{PRODUCT}_04_55", "train", ["Peatbogs"])]
    write_table(write_v2(tmp_path) / "metadata.parquet", rows)
    with pytest.raises(ValueError, match="Peatbogs"):
        list(open_source(BigEarthNetV2Config(root=str(tmp_path))).discover())


def test_tables_of_another_archive_are_refused(tmp_path):
    write_table(write_v2(tmp_path) / "metadata.parquet", [("other", "train", ["Pastures"])])
    with pytest.raises(ValueError, match="none of the 2 patches"):
        list(open_source(BigEarthNetV2Config(root=str(tmp_path))).discover())


def test_a_missing_band_is_named(tmp_path):
    name = f"{PRODUCT}_04_55"
    write_table(write_v2(tmp_path) / "metadata.parquet", [(name, "train", ["Pastures"])])
    (tmp_path / "BigEarthNet-S2" / PRODUCT / name / f"{name}_B8A.tif").unlink()
    source = open_source(BigEarthNetV2Config(root=str(tmp_path)))
    with pytest.raises(PatchError, match=rf"{name}_B8A\.tif: missing"):
        source.read(next(iter(source.discover())), source.layout())


def write_map(root, name, codes, **profile):
    product = name.rsplit("_", 2)[0]
    path = root / "Reference_Maps" / product / name / f"{name}_reference_map.tif"
    return write_geotiff(path, np.asarray(codes, np.uint16)[None], nodata=0, **profile)


def with_map(root, codes, **settings):
    name = f"{PRODUCT}_04_55"
    write_table(write_v2(root, [name]) / "metadata.parquet", [(name, "train", ["Arable land"])])
    write_map(root, name, codes)
    source = open_source(BigEarthNetV2Config(root=str(root), **settings))
    return source, source.read(next(iter(source.discover())), source.layout())


def test_maps_give_shares_of_every_class_and_the_irrigation_labels(tmp_path):
    codes = np.full((120, 120), 211)
    codes[:30], codes[30:36], codes[36:48], codes[48:60] = 212, 222, 999, 0
    source, patch = with_map(tmp_path, codes)
    corine = dict(
        zip(source.layout().fraction_sets[0].classes, patch.fractions["corine"], strict=True)
    )
    assert {name: share for name, share in corine.items() if share} == {
        "Non-irrigated arable land": pytest.approx(0.5),
        "Permanently irrigated land": pytest.approx(0.25),
        "Fruit trees and berry plantations": pytest.approx(0.05),
        "unlabelled": pytest.approx(0.2),
    }
    assert patch.fractions["irrigation"].tolist() == pytest.approx([0.25, 0.3])
    assert patch.labels == {
        "bigearthnet19": ("Arable land",),
        "irrigation_regular": ("irrigated",),
        "irrigation_extended": ("irrigated",),
    }


def test_a_share_may_be_asked_for_before_a_patch_counts_as_irrigated(tmp_path):
    codes = np.full((120, 120), 211)
    codes[:30], codes[30:36] = 212, 222
    _, patch = with_map(tmp_path, codes, min_irrigated=0.27)
    assert patch.labels["irrigation_regular"] == ("not irrigated",)
    assert patch.labels["irrigation_extended"] == ("irrigated",)


def test_ground_without_a_class_has_no_answer_and_a_patch_without_a_map_neither(tmp_path):
    source, patch = with_map(tmp_path, np.full((120, 120), 999))
    assert patch.labels.keys() == {"bigearthnet19"}
    for path in (tmp_path / "Reference_Maps").rglob("*.tif"):
        path.unlink()
    patch = source.read(next(iter(source.discover())), source.layout())
    assert (patch.labels.keys(), patch.fractions) == ({"bigearthnet19"}, {})


def test_maps_reach_the_shards_with_their_names(tmp_path):
    codes = np.full((120, 120), 212)
    source, _ = with_map(tmp_path / "root", codes)
    output = tmp_path / "shards"
    pack(PackConfig(source=source.config, output=str(output)), progress=False)
    (reader,) = open_readers(output, read_manifest(output))
    assert reader.fractions("irrigation").tolist() == [[1, 1]]
    classes = reader.layout.label_set("irrigation_regular").classes
    assert classes[reader.labels("irrigation_regular")[0].argmax()] == "irrigated"


def test_a_map_of_other_codes_or_ground_is_named(tmp_path):
    with pytest.raises(PatchError, match=r"_reference_map\.tif: code 42 is not a CORINE"):
        with_map(tmp_path / "codes", np.full((120, 120), 42))
    with pytest.raises(PatchError, match=r"_reference_map\.tif: lies at EPSG"):
        moved(tmp_path / "place")

    with pytest.raises(PatchError, match=r"_reference_map\.tif: is 1 band\(s\) of 60 x 60"):
        with_map(tmp_path / "size", np.full((60, 60), 211))


def moved(root):
    source, patch = with_map(root, np.full((120, 120), 211))
    there = rasterio.Affine(10, 0, 404410, 0, -10, 5342400)
    write_map(root, patch.id, np.full((120, 120), 211), transform=there)
    return source.read(next(iter(source.discover())), source.layout())


@pytest.mark.parametrize("bands", [["B05"], ["B01", "B09"]])
def test_coarse_bands_alone_have_the_labels_of_the_same_map(tmp_path, bands):
    _, patch = with_map(tmp_path, np.full((120, 120), 212), bands=bands)
    assert patch.labels["irrigation_regular"] == ("irrigated",)


def test_a_split_of_a_table_is_one_that_evaluation_knows(tmp_path):
    rows = [(f"{PRODUCT}_04_55", "val", ["Pastures"]), (f"{PRODUCT}_26_57", None, ["Pastures"])]
    write_table(write_v2(tmp_path) / "metadata.parquet", rows)
    source = open_source(BigEarthNetV2Config(root=str(tmp_path)))
    assert [ref.split for ref in source.discover()] == ["validation", ""]
    write_table(tmp_path / "metadata.parquet", [(f"{PRODUCT}_04_55", "Train", ["Pastures"])])
    with pytest.raises(ValueError, match=r"the split of S2A.*_04_55 is 'Train'; give train"):
        list(source.discover())


def test_shares_of_the_real_map_are_those_of_its_pixels(real_data):
    (path,) = (real_data / "bigearthnet_v2" / "Reference_Maps").rglob("*.tif")
    with rasterio.open(path) as dataset:
        codes = dataset.read(1)
    shares = shares_of_codes(codes)
    names = dict(zip(CORINE.classes, shares["corine"].tolist(), strict=True))
    for name, code in CLC_CODES.items():
        assert names[name] == pytest.approx(float((codes == code).mean()))
    row = pq.read_table(
        real_data / "bigearthnet_v2" / "metadata.parquet",
        filters=[("patch_id", "=", path.parent.name)],
    ).to_pylist()[0]
    present = {TO_19[name] for name, share in names.items() if share and name in TO_19}
    assert present == set(row["labels"])


@pytest.mark.parametrize("line", [f"{PRODUCT}_04_55", "33UUP_04_55", "S2A_MSIL2A_x_4_55,S1"])
def test_excluded_are_whole_ids_places_and_names_of_v1(tmp_path, line):
    names = [f"{PRODUCT}_04_55", f"{PRODUCT}_26_57"]
    write_table(
        write_v2(tmp_path, names) / "metadata.parquet",
        [(name, "train", ["Pastures"]) for name in names],
        s2v1_name=["S2A_MSIL2A_x_4_55", "S2A_MSIL2A_x_26_57"],
    )
    (tmp_path / "out.csv").write_text(f"{line}\n{PRODUCT}_26_5\n")
    config = BigEarthNetV2Config(root=str(tmp_path), exclude_lists=[str(tmp_path / "out.csv")])
    assert [ref.id for ref in open_source(config).discover()] == [names[1]]
