"""Multi-band GeoTIFFs: declared bands, classes from folders, pixels to the bit."""

import numpy as np
import pytest
import rasterio
from make_data import class_folders, write_geotiff

from preprocess.config import GeotiffConfig
from preprocess.patch import PatchError
from preprocess.shards import LabelSet
from preprocess.sources import open_source

# EuroSAT MS stores B8A last.
EUROSAT = [
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
]  # fmt: skip


def eurosat(root, **settings):
    return open_source(
        GeotiffConfig(root=str(root), name="eurosat", file_bands=EUROSAT, **settings)
    )


def test_pixels_equal_an_independent_read_of_every_file(real_data):
    root = real_data / "eurosat_ms"
    source = eurosat(root)
    layout = source.layout()
    assert layout.bands == tuple(EUROSAT)
    refs = list(source.discover())
    assert len(refs) == 198
    for ref in refs:
        patch = source.read(ref, layout)
        with rasterio.open(root / f"{ref.id}.tif") as dataset:
            assert np.array_equal(patch.pixels["b10"], dataset.read())
            assert patch.epsg == dataset.crs.to_epsg()
        assert patch.labels == {"eurosat": (ref.id.split("/")[0],)}


def test_classes_are_the_folder_names_in_order(tmp_path):
    class_folders(tmp_path, ("River", "Forest"))
    assert eurosat(tmp_path).layout().label_sets == (
        LabelSet("eurosat", "single", ("Forest", "River")),
    )


def test_bands_are_picked_by_name_from_the_order_of_the_file(tmp_path):
    path = class_folders(tmp_path)[0]
    source = eurosat(tmp_path, bands=["B8A", "B2"])
    patch = source.read(next(iter(source.discover())), source.layout())
    with rasterio.open(path) as dataset:
        assert np.array_equal(patch.pixels["b10"], dataset.read([13, 2]))


def test_an_id_is_the_path_without_its_suffix_and_ids_ascend(tmp_path):
    class_folders(tmp_path, per_class=12)
    ids = [ref.id for ref in eurosat(tmp_path).discover()]
    assert ids == sorted(ids)
    assert ids[:2] == ["Forest/Forest_1", "Forest/Forest_10"]


@pytest.mark.parametrize("in_folders", [True, False])
def test_files_without_class_have_no_label_set(tmp_path, in_folders):
    write_geotiff(
        tmp_path / ("a" if in_folders else "") / "x.tif", np.ones((13, 64, 64), np.uint16)
    )
    source = eurosat(tmp_path, labels_from_folders=not in_folders)
    assert source.layout().label_sets == ()
    assert next(iter(source.discover())).labels == {}


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.ones((12, 64, 64), np.uint16), r"has 12 band\(s\), source.file_bands names 13"),
        (np.ones((13, 64, 60), np.uint16), "60 x 64 pixels, source.size_px is 64"),
        (np.ones((13, 64, 64), np.int16), "int16, not uint16"),
    ],
)
def test_a_file_of_another_shape_is_named_with_the_reason(tmp_path, pixels, reason):
    write_geotiff(tmp_path / "Forest" / "odd.tif", pixels)
    source = eurosat(tmp_path)
    with pytest.raises(PatchError, match=rf"odd\.tif: .*{reason}"):
        source.read(next(iter(source.discover())), source.layout())


def test_a_truncated_file_is_named(tmp_path):
    path = class_folders(tmp_path, ("Forest",), per_class=1)[0]
    path.write_bytes(path.read_bytes()[:50_000])
    source = eurosat(tmp_path)
    with pytest.raises(PatchError, match=r"Forest_1\.tif: cannot be read"):
        source.read(next(iter(source.discover())), source.layout())


def test_undeclared_bands_are_refused(tmp_path):
    class_folders(tmp_path)
    with pytest.raises(ValueError, match=r"source\.file_bands is empty"):
        open_source(GeotiffConfig(root=str(tmp_path))).layout()
    with pytest.raises(ValueError, match="B02"):
        open_source(GeotiffConfig(root=str(tmp_path), file_bands=["B01"], bands=["B02"])).layout()


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_a_wrong_root_says_what_was_sought(tmp_path, root):
    with pytest.raises(ValueError, match=r"not a folder|sought files with \.tif"):
        list(eurosat(tmp_path / root).discover())
