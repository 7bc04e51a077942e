"""BigEarthNet v2: pixels to the bit, labels and splits from the tables, places shared with v1."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from make_data import write_geotiff

from preprocess.bands import BANDS, L2A_BANDS
from preprocess.config import BigEarthNetV2Config
from preprocess.patch import PatchError
from preprocess.sources import open_source

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


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    write_v2(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"simclr-s2\[bigearthnet\]"):
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
