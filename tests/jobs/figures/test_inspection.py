"""Pictures of shards show what the shards hold, on real patches and on simulated ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
from make_data import packed_arrays, packed_simulated

from jobs.commands.verify import Inspect
from jobs.config import ClusterConfig, InspectConfig, InspectionKind
from jobs.figures.shards import (
    TRUE_COLOUR,
    _short,
    inspect_shards,
    inspect_views,
    patch_of,
    pictures_of,
    spread,
    stretch,
)
from jobs.launch import run
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards import open_readers, read_manifest
from preprocess.sources.bigearthnet import BigEarthNetV1Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed_simulated(tmp_path_factory.mktemp("to look at"), 10, shard_size_mib=1)


def test_a_patch_is_shown_with_its_own_pixels_on_the_finest_grid(folder):
    readers = open_readers(folder, read_manifest(folder))
    assert len(readers) > 1
    ids = np.concatenate([reader.index("id") for reader in readers])
    pixels, name = patch_of(readers, 9)
    assert name == ids[9]
    last = readers[-1].read(readers[-1].entry.rows - 1)
    assert np.array_equal(pixels["B02"], last["b10"][0])
    assert pixels["B05"].shape == pixels["B02"].shape
    assert np.array_equal(pixels["B05"][::2, 1::2], last["b20"][0])


def test_nodata_is_no_dark_pixel(folder):
    manifest = read_manifest(folder)
    pixels, _ = patch_of(open_readers(folder, manifest), 0)
    pixels["B03"][:5] = 0
    image = stretch(pixels, TRUE_COLOUR, manifest)
    assert (image[:5] == (1, 0, 1)).all()
    assert not (image[5:] == (1, 0, 1)).all(axis=-1).any()


def test_a_page_holds_every_picture_of_the_shards(folder, tmp_path):
    page = inspect_shards(InspectConfig(shards=str(folder), patches=6), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.*g")}
    assert {"true_colour.jpg", "false_colour.jpg", "histograms.png"} <= names
    assert "classes_bigearthnet19.png" in names
    assert page.read_text().count("<img ") == len(names)
    assert "simulated patches" in page.read_text()


def test_real_patches_are_put_on_a_map(real_data, tmp_path):
    root = real_data / "bigearthnet_v1" / "BigEarthNet-v1.0"
    config = PackConfig(source=BigEarthNetV1Config(root=str(root)), output=str(tmp_path / "v1"))
    pack(config, progress=False)
    inspect_shards(InspectConfig(shards=str(tmp_path / "v1")), tmp_path / "out")
    assert (tmp_path / "out" / "map.png").stat().st_size > 5000


def test_patches_without_colours_or_places_still_have_a_page(tmp_path):
    shards = packed_arrays(tmp_path / "shards", 4, bands=["B11"])
    config = InspectConfig(shards=str(shards))
    assert "No picture in true colour" in inspect_shards(config, tmp_path / "a").read_text()
    assert inspect_views(config, tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("bands", "pictures"),
    [
        (["B02", "B03", "B04", "B08", "B8A"], {"true_colour": "B04", "false_colour": "B08"}),
        (["B03", "B04", "B8A"], {"false_colour": "B8A"}),
        (["B02", "B04", "B08"], {"grey": "B02"}),
    ],
)
def test_there_is_a_picture_of_whatever_bands_were_packed(tmp_path, bands, pictures):
    assert {name: triple[0] for name, triple in pictures_of(bands).items()} == pictures
    shards = packed_arrays(tmp_path / "shards", 4, bands=bands)
    page = inspect_shards(InspectConfig(shards=str(shards)), tmp_path / "out").read_text()
    for name, first in pictures.items():
        assert (tmp_path / "out" / f"{name}.jpg").exists()
        assert f"{first}" in page


def test_the_verb_draws_the_views_of_training_beside_the_shards(folder):
    said = run(
        Inspect(InspectConfig(what=InspectionKind.augment, shards=str(folder), patches=2)),
        ClusterConfig(),
    )
    assert said == str(folder / "inspection" / "augment.html")
    assert (folder / "inspection" / "operations.jpg").exists()
    assert read_manifest(folder).rows == 10  # pictures among shards disturb nobody


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("p_7", "p_7"),
        ("S2A_MSIL2A_20170613T101031_0_45", "S2A_MSIL2A_\n20170613T101031_0_45"),
        ("a/S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", "…N9999_\nR022_T33UUP_26_57"),
    ],
)
def test_a_title_breaks_where_the_id_does_and_keeps_its_end(name, shown):
    assert _short(name) == shown


def test_names_with_dollars_are_no_formulas(tmp_path):
    classes = ("$\\alpha$", "$\\rice$")  # matplotlib knows one of them as mathematics
    shards = packed_arrays(tmp_path / "s", 4, classes=classes, source="$\\x$", bands=["B02"])
    page = inspect_shards(InspectConfig(shards=str(shards)), tmp_path / "out")
    assert (page.parent / "classes_labels.png").exists()


def test_classes_that_no_patch_carries_are_counted_and_not_drawn(folder, tmp_path):
    page = inspect_shards(InspectConfig(shards=str(folder), patches=2), tmp_path).read_text()
    absent = re.findall(r">Patches that carry each class; classes without a patch: (\d+)", page)
    readers = open_readers(folder, read_manifest(folder))
    for found, name in zip(absent[:2], ("bigearthnet43", "bigearthnet19"), strict=True):
        carried = np.concatenate([reader.labels(name) for reader in readers]).any(axis=0)
        assert int(found) == (~carried).sum() > 0


@pytest.mark.parametrize(("total", "count", "rows"), [(10, 3, [0, 4, 9]), (2, 5, [0, 1])])
def test_what_is_shown_is_spread_over_all(total, count, rows):
    assert spread(total, count).tolist() == rows
