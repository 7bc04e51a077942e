"""SAFE products: XML, name and baseline agree on the offset; pixels come back to the bit."""

from xml.etree import ElementTree

import numpy as np
import pytest
from make_products import simulated_products

from preprocess.config import PackConfig, SelectConfig, SplitConfig
from preprocess.pack import pack
from preprocess.radiometry import baseline_of, offset_of
from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import PatchRef
from preprocess.sources import open_source
from preprocess.sources.l2a_files import SafeL2AConfig, offset_in
from preprocess.sources.simulated import make_land, observe


def metadata_of(real_data):
    return sorted((real_data / "sentinel2_safe").rglob("MTD_MSIL2A.xml"))


def test_every_real_product_states_the_offset_that_its_baseline_has(real_data):
    found = {}
    for path in metadata_of(real_data):
        baseline = baseline_of(path.parent.name)
        found[baseline] = offset_in(ElementTree.parse(path).getroot())
        assert found[baseline] == offset_of(baseline)
    assert found == {"02.12": 0, "02.14": 0, "04.00": -1000, "05.09": -1000}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('band_id="3">-1000', 'band_id="3">-900', r"different offsets \[-1000, -900\]"),
        ('BOA_QUANTIFICATION_VALUE unit="none">10000', None, "BOA_QUANTIFICATION_VALUE is 1000"),
    ],
)
def test_a_product_of_another_unit_is_refused(real_data, old, new, reason):
    (path,) = [path for path in metadata_of(real_data) if "_N0400_" in str(path)]
    text = path.read_text()
    assert old in text
    changed = text.replace(old, new or old.removesuffix("0"))
    with pytest.raises(ValueError, match=reason):
        offset_in(ElementTree.fromstring(changed.encode()))


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Two products of one tile, a summer and a winter, with a region of 2 x 2 patches."""
    root = tmp_path_factory.mktemp("products")
    return root, simulated_products(root, 2)


@pytest.mark.slow
def test_every_pixel_comes_back_from_the_shards_without_the_offset(products, tmp_path):
    root, scenes = products
    # regions also lie where tiles overlap; no other tile is there
    source = SafeL2AConfig(root=str(root), select=SelectConfig(one_owner=False))
    pack(PackConfig(source=source, output=str(tmp_path)), progress=False)
    (reader,) = open_readers(tmp_path, manifest := read_manifest(tmp_path))
    assert manifest.rows == 8
    assert set(reader.index("offset")) == {-1000}
    assert set(reader.index("offset_authority")) == {"xml"}
    for row, (place, day) in enumerate(
        zip(reader.index("place"), reader.index("acquired"), strict=True)
    ):
        (scene,) = [scene for scene in scenes if scene.stamp()[:8] == day[:10].replace("-", "")]
        column, line = (int(part) for part in place.split("_")[1:])
        east, south = column - scene.corner[0], line - scene.corner[1]
        seen = observe(3, scene, make_land(3, 0))
        for name, pixels in reader.read(row).items():
            n = pixels.shape[-1]
            wanted = seen[name][:, south * n : (south + 1) * n, east * n : (east + 1) * n]
            assert np.array_equal(pixels, wanted)


@pytest.mark.slow
def test_a_place_has_one_block_and_one_split_on_all_dates(products):
    select = SelectConfig(one_owner=False, min_dates=2)
    split = SplitConfig(block_km=12, buffer_km=1.2)
    config = SafeL2AConfig(root=str(products[0]), select=select, split=split)
    refs = [item for item in open_source(config).discover() if isinstance(item, PatchRef)]
    places = [ref.id[-6:] for ref in refs]
    assert sorted(places) == sorted(2 * sorted(set(places)))
    by_place = {(ref.id[-6:], ref.block, ref.split) for ref in refs}
    assert len(by_place) == len(set(places))
