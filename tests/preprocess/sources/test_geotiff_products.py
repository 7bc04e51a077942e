"""The real pair of cells: one with the offset in, one without, each read by its own rule."""

import numpy as np
import pytest
import rasterio

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards import open_readers, read_manifest
from preprocess.sources import open_source
from preprocess.sources.geotiff_files import GeotiffConfig

WITH, WITHOUT = "_N0400_", "_N9999_"
RULES = {WITH: (-1000, "name", "04.00"), WITHOUT: (0, "user", "99.99")}


def cells(real_data, **settings):
    settings = {"reprocessed_offset": 0, "size_px": 1068, **settings}
    root = str(real_data / "major_tom_l2a")
    return GeotiffConfig(root=root, native=True, labels_from_folders=False, **settings)


def expected(real_data, patch_id, band, offset):
    (folder,) = (real_data / "major_tom_l2a").glob(f"*/*/*/{patch_id.split('/')[-1][:60]}")
    with rasterio.open(folder / f"{band}.tif") as dataset:
        numbers = dataset.read(1).astype(int)
    return np.where(numbers == 0, 0, np.maximum(numbers + offset, 1))


def test_each_cell_is_packed_by_its_own_rule_to_the_bit(real_data, tmp_path):
    pack(PackConfig(source=cells(real_data), output=str(tmp_path)), progress=False)
    (reader,) = open_readers(tmp_path, read_manifest(tmp_path))
    for row, patch_id in enumerate(reader.index("id")):
        rule = next(rule for tag, rule in RULES.items() if tag in patch_id)
        stored = ("offset", "offset_authority", "baseline")
        assert tuple(reader.index(field)[row] for field in stored) == rule
        pixels = reader.read(row)
        assert [pixels[name].shape for name in pixels] == [
            (4, 1068, 1068), (6, 534, 534), (2, 178, 178)
        ]  # fmt: skip
        for group in reader.layout.groups:
            for channel, band in enumerate(group.bands):
                wanted = expected(real_data, patch_id, band, rule[0])
                assert np.array_equal(pixels[group.name][channel], wanted)


def test_dark_targets_of_both_are_physical_and_alike(real_data):
    source = open_source(cells(real_data))
    layout = source.layout()
    for patch in (source.read(ref, layout) for ref in source.discover()):
        bands = [band for group in layout.groups for band in group.bands]
        images = [image for group in layout.groups for image in patch.pixels[group.name]]
        for band in ("B02", "B04", "B11", "B12"):
            darkest = np.percentile(images[bands.index(band)], 1)
            # one cell is hazy and has no shadow: its blue starts at reflectance 0.10
            assert 0 < darkest < 1300, (patch.id, band)


def test_cut_to_patches_both_cells_give_eight_by_eight(real_data):
    source = open_source(cells(real_data, size_px=120, cut=True))
    refs = list(source.discover())
    assert len(refs) == 2 * 64
    patch = source.read(refs[9], source.layout())  # column 1, row 1
    wanted = expected(real_data, patch.product, "B05", patch.offset)
    assert np.array_equal(patch.pixels["b20"][0], wanted[60:120, 60:120])


def test_a_wrong_declaration_of_either_is_a_contradiction(real_data):
    with pytest.raises(ValueError, match=r"N0400.* user says .* is 0, name says -1000"):
        list(open_source(cells(real_data, boa_offset=0)).discover())
    with pytest.raises(ValueError, match=r"N9999.* no offset seems to be in the files"):
        list(open_source(cells(real_data, reprocessed_offset=-1000)).discover())


def test_without_any_declaration_the_source_refuses_to_guess(real_data):
    with pytest.raises(ValueError, match=r"N9999.* set source\.boa_offset=-1000 if .*=0 if"):
        list(open_source(cells(real_data, reprocessed_offset=None)).discover())
