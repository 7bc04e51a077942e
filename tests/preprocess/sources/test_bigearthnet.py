"""BigEarthNet v1: pixels to the bit, labels, places, lists, and every trap of the names."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import rasterio
from make_data import bigearthnet_v1, write_geotiff

from preprocess.shards.format import PatchError
from preprocess.sources import open_source
from preprocess.sources.base import read_names, read_splits
from preprocess.sources.bigearthnet import _V1_PATCH, BigEarthNetV1Config
from preprocess.sources.simulated import write_tree


def discovered(**settings):
    return list(open_source(BigEarthNetV1Config(**settings)).discover())


def read_first(root, **settings):
    source = open_source(BigEarthNetV1Config(root=str(root), **settings))
    return source.read(next(iter(source.discover())), source.layout())


@pytest.fixture
def tree(tmp_path):
    bigearthnet_v1(tmp_path / "tree", 2)
    return tmp_path / "tree"


def test_pixels_equal_an_independent_read_of_every_band(real_data):
    source = open_source(BigEarthNetV1Config(root=str(real_data / "bigearthnet_v1")))
    layout = source.layout()
    refs = list(source.discover())
    assert len(refs) == 6
    for ref in refs:
        patch = source.read(ref, layout)
        for group in layout.groups:
            for channel, band in enumerate(group.bands):
                folder = real_data / "bigearthnet_v1" / "BigEarthNet-v1.0" / ref.id
                with rasterio.open(folder / f"{ref.id}_{band}.tif") as dataset:
                    assert np.array_equal(patch.pixels[group.name][channel], dataset.read(1))
                    if channel == 0 and group is layout.groups[0]:
                        assert patch.transform == tuple(dataset.transform)[:6]
                        assert patch.epsg == dataset.crs.to_epsg()


def test_a_time_of_five_digits_is_never_taken_for_a_clock(real_data):
    source = open_source(BigEarthNetV1Config(root=str(real_data / "bigearthnet_v1")))
    patches = {ref.id: source.read(ref, source.layout()) for ref in source.discover()}
    patch = patches["S2B_MSIL2A_20180204T94161_57_38"]
    assert (patch.acquired, patch.tile) == ("2018-02-04T09:41:56Z", "35VPK")
    assert (patch.place, patch.baseline) == ("35VPK_57_38", "02.06")
    assert patches["S2A_MSIL2A_20170617T113321_4_55"].place == "29UPU_04_55"
    assert patch.labels["bigearthnet43"] == (
        "Non-irrigated arable land",
        "Coniferous forest",
        "Mixed forest",
    )
    assert patch.labels["bigearthnet19"] == ("Arable land", "Coniferous forest", "Mixed forest")
    assert patch.labels["irrigation_regular"] == ("not irrigated",)


def test_official_lists_give_splits_and_exclusions(real_data):
    folder = real_data / "bigearthnet_v1"
    refs = discovered(
        root=str(folder),
        train_list=str(folder / "splits" / "train.csv.gz"),
        validation_list=str(folder / "splits" / "val.csv.gz"),
        test_list=str(folder / "splits" / "test.csv.gz"),
        exclude_lists=[str(folder / "lists" / "patches_with_seasonal_snow.csv.gz")],
    )
    assert {ref.id: ref.split for ref in refs} == {
        "S2A_MSIL2A_20170613T101031_87_48": "test",
        "S2A_MSIL2A_20170617T113321_36_85": "train",
        "S2A_MSIL2A_20170617T113321_4_55": "train",
        "S2A_MSIL2A_20171221T112501_56_35": "train",
        "S2B_MSIL2A_20170924T93020_69_24": "train",
    }


def test_a_name_in_a_list_excludes_only_itself(tmp_path):
    tree = tmp_path / "tree"
    folders = bigearthnet_v1(tree, 12)
    listed = folders[0].name.rsplit("_", 2)[0] + "_1_7"
    path = tmp_path / "snow.csv.gz"
    path.write_bytes(gzip.compress(f"{listed}\n".encode()))
    left = {ref.id for ref in discovered(root=str(tree), exclude_lists=[str(path)])}
    assert left == {folder.name for folder in folders} - {listed}
    assert f"{listed[:-4]}_11_7" in left


def test_a_name_in_two_lists_is_refused(tree, tmp_path):
    (tmp_path / "a.csv").write_text("x,radar\n")
    (tmp_path / "b.csv").write_text("x\n")
    lists = {"train_list": str(tmp_path / "a.csv"), "test_list": str(tmp_path / "b.csv")}
    with pytest.raises(ValueError, match="x is both in the train and the test list"):
        discovered(root=str(tree), **lists)


def test_lists_of_other_patches_are_refused(tree, tmp_path):
    (tmp_path / "train.csv").write_text("0,S2A_MSIL2A_20170613T101031_0_7\n")
    with pytest.raises(ValueError, match=r"none of the \d patches .* names such as S2A_MSIL2A"):
        discovered(root=str(tree), train_list=str(tmp_path / "train.csv"))


def test_an_absent_list_is_named(tree):
    with pytest.raises(ValueError, match=r"none\.csv"):
        discovered(root=str(tree), train_list="none.csv")


def test_references_come_in_the_order_of_their_ids_and_other_entries_are_passed_over(tmp_path):
    folders = bigearthnet_v1(tmp_path, 12)
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "S2A_MSIL2A_20170613T101031_1_2.aux").mkdir()
    ids = [ref.id for ref in discovered(root=str(tmp_path))]
    assert ids == sorted(folder.name for folder in folders)


def test_side_files_are_not_bands(tree):
    name = sorted(tree.iterdir())[0].name
    before = read_first(tree)
    write_geotiff(tree / name / f"{name}_B10.tif", np.ones((1, 20, 20), np.uint16))
    (tree / name / f"{name}_B02.tif.aux.xml").write_text("<PAMDataset/>")
    after = read_first(tree)
    assert all(np.array_equal(before.pixels[key], after.pixels[key]) for key in before.pixels)


def test_only_the_bands_asked_for_are_opened(tree):
    folder = sorted(tree.iterdir())[0]
    (folder / f"{folder.name}_B01.tif").unlink()
    patch = read_first(tree, bands=["B8A", "B04"])
    assert {key: value.shape for key, value in patch.pixels.items()} == {
        "b10": (1, 120, 120),
        "b20": (1, 60, 60),
    }


@pytest.mark.parametrize("root", ["nowhere", "empty"])
def test_a_wrong_root_says_what_was_sought(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"{root}.*(not a folder|S2A_MSIL2A_20170613T101031)"):
        discovered(root=str(tmp_path / root))


def test_simulated_patches_are_not_taken_for_measured_ones(tmp_path):
    write_tree(tmp_path / "sim", 1, seed=0)
    with pytest.raises(ValueError, match="source=simulated"):
        discovered(root=str(tmp_path / "sim"))


def test_cirrus_is_refused_by_name(tree):
    with pytest.raises(ValueError, match="B10"):
        read_first(tree, bands=["B02", "B10"])


def remove_band(folder):
    (folder / f"{folder.name}_B11.tif").unlink()


def truncate_band(folder):
    path = folder / f"{folder.name}_B11.tif"
    path.write_bytes(path.read_bytes()[:1000])


def shrink_band(folder):
    write_geotiff(folder / f"{folder.name}_B11.tif", np.ones((1, 59, 60), np.uint16))


def retype_band(folder):
    write_geotiff(folder / f"{folder.name}_B11.tif", np.ones((1, 60, 60), np.float32))


def move_band(folder):
    write_geotiff(
        folder / f"{folder.name}_B11.tif",
        np.ones((1, 60, 60), np.uint16),
        transform=rasterio.Affine(20, 0, 404420, 0, -20, 5342400),
    )


def change_zone(folder):
    path = folder / f"{folder.name}_B11.tif"
    write_geotiff(path, np.ones((1, 60, 60), np.uint16), resolution_m=20, crs="EPSG:32632")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (remove_band, "missing"),
        (truncate_band, "cannot be read"),
        (shrink_band, "60 x 59 pixels.*60 x 60"),
        (retype_band, "float32, not uint16"),
        (move_band, "404420"),
        (change_zone, "EPSG 32632"),
    ],
)
def test_a_bad_band_is_named_with_the_reason(tree, spoil, reason):
    spoil(sorted(tree.iterdir())[0])
    with pytest.raises(PatchError, match=rf"_B11\.tif: .*{reason}"):
        read_first(tree)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not readable JSON"),
        ("[]", "labels"),
        (json.dumps({"labels": ["Pastures"], "tile_source": "x"}), "acquisition_date"),
        ({"labels": ["Meadow"]}, "'Meadow'"),
        ({"labels": []}, "no class"),
        ({"acquisition_date": "yesterday"}, "'yesterday'"),
    ],
)
def test_bad_metadata_is_named_with_the_reason(tree, content, reason):
    folder = sorted(tree.iterdir())[0]
    path = folder / f"{folder.name}_labels_metadata.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    path.write_text(content)
    with pytest.raises(PatchError, match=rf"_labels_metadata\.json: .*{reason}"):
        read_first(tree)


def test_absent_metadata_is_named(tree):
    folder = sorted(tree.iterdir())[0]
    (folder / f"{folder.name}_labels_metadata.json").unlink()
    with pytest.raises(PatchError, match=r"_labels_metadata\.json: missing"):
        read_first(tree)


def test_the_official_lists_have_the_sizes_that_were_published(real_data):
    folder = real_data / "bigearthnet_v1"
    splits = read_splits(
        {name: str(folder / "splits" / f"{name}.csv.gz") for name in ("train", "val", "test")}
    )
    counts = Counter(splits.values())
    assert counts == {"train": 269_695, "val": 123_723, "test": 125_866}
    # every name is one of a patch, the 51,410 with a time of five digits too
    assert all(_V1_PATCH.fullmatch(name) for name in splits)
    assert sum(len(name.split("T")[1].split("_")[0]) == 5 for name in splits) == 51_410
    lists = {
        "seasonal_snow.csv.gz": 61_707,
        "cloud_and_shadow.csv.gz": 9_280,
        "no_19_class_targets.csv": 57,
    }
    for name, size in lists.items():
        (path,) = (folder / "lists").glob(f"*{name}")
        listed = read_names(str(path))
        assert len(listed) == size
        assert listed.isdisjoint(splits)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ((10, 0, 0, 10), r"is south-up \(pixels of 10 x 10\)"),
        ((8, 6, 6, -8), "is rotated"),
        ((20, 0, 0, -20), r"has pixels of 20 x 20 m by EPSG \d+, not of 10 m"),
        ((-10, 0, 0, -10), "is mirrored"),
    ],
)
def test_bands_that_are_no_upright_squares_of_their_size_are_rejected(tree, grid, reason):
    folder = sorted(tree.iterdir())[0]
    for band in ("B02", "B03", "B04", "B08"):
        with rasterio.open(folder / f"{folder.name}_{band}.tif", "r+") as dataset:
            a, b, d, e = grid
            x, y = dataset.transform.c, dataset.transform.f
            dataset.transform = rasterio.Affine(a, b, x, d, e, y)
    with pytest.raises(PatchError, match=reason):
        read_first(tree)


def test_bands_in_degrees_are_rejected(tree):
    folder = sorted(tree.iterdir())[0]
    with rasterio.open(folder / f"{folder.name}_B02.tif", "r+") as dataset:
        dataset.crs = "EPSG:4326"
    with pytest.raises(PatchError, match="EPSG 4326, whose units are not metres"):
        read_first(tree)
