"""Simulated products: the land of the simulated tree, read back as real products are."""

import json

import numpy as np
import pytest
import rasterio

from preprocess.config import (
    PackConfig,
    SafeL2AConfig,
    SelectConfig,
    SimulatedConfig,
    SimulatedForm,
    SplitConfig,
)
from preprocess.pack import pack
from preprocess.shards import open_readers, read_manifest
from preprocess.shards.patch import PatchRef
from preprocess.simulation import Scene, make_land, observe
from preprocess.sources import open_source
from preprocess.sources.simulated import MARKER
from preprocess.sources.simulated_safe import places_of, scenes_by_product


def settings(root, **changed):
    chosen = {"num_patches": 8, "form": SimulatedForm.safe, "seed": 3, **changed}
    return SimulatedConfig(root=str(root), **chosen)


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Two products of one tile, a summer and a winter, with a region of 2 x 2 patches."""
    root = tmp_path_factory.mktemp("products")
    list(open_source(settings(root)).discover())
    return root


@pytest.mark.slow
def test_every_pixel_comes_back_from_the_shards_without_the_offset(products, tmp_path):
    pack(PackConfig(source=settings(products), output=str(tmp_path)), progress=False)
    (reader,) = open_readers(tmp_path, manifest := read_manifest(tmp_path))
    assert manifest.simulated
    assert manifest.rows == 8
    assert set(reader.index("offset")) == {-1000}
    assert set(reader.index("offset_authority")) == {"xml"}
    for row, (place, day) in enumerate(
        zip(reader.index("place"), reader.index("acquired"), strict=True)
    ):
        scene = Scene(0, season=int(day[5:7] not in ("06", "07", "08")), year=0)
        at = places_of(scene).index(place)
        east, south = divmod(at, 2)
        seen = observe(3, scene, make_land(3, 0))
        for name, pixels in reader.read(row).items():
            n = pixels.shape[-1]
            wanted = seen[name][:, south * n : (south + 1) * n, east * n : (east + 1) * n]
            assert np.array_equal(pixels, wanted)


@pytest.mark.slow
def test_products_are_read_by_the_source_of_real_ones(products):
    select = SelectConfig(one_owner=False, min_dates=2)
    split = SplitConfig(block_km=12, buffer_km=1.2)
    config = SafeL2AConfig(root=str(products), select=select, split=split)
    refs = [item for item in open_source(config).discover() if isinstance(item, PatchRef)]
    places = [ref.id[-6:] for ref in refs]
    assert sorted(places) == sorted(2 * sorted(set(places)))
    by_place = {(ref.id[-6:], ref.block, ref.split) for ref in refs}
    assert len(by_place) == len(set(places))  # one block and split on all dates


@pytest.mark.slow
def test_products_say_that_they_are_simulated_and_lie_on_their_tile(products):
    assert json.loads((products / MARKER).read_text())["complete"] is True
    folders = sorted(path.name for path in products.glob("*.SAFE"))
    assert all(name.startswith("SIM_MSIL2A_2017") for name in folders)
    scene = Scene(0, 0, 0)
    for path in products.rglob("*_60m.jp2"):
        with rasterio.open(path) as dataset:
            assert (dataset.width, dataset.height, dataset.dtypes) == (1830, 1830, ("uint16",))
            assert dataset.crs.to_epsg() == scene.tile.epsg
            assert (dataset.transform.c, dataset.transform.f) == (scene.tile.x, scene.tile.y)
    assert all("synthesised" in path.read_text() for path in products.rglob("*.xml"))
    # nor do they pass for measured when they are read as products
    assert open_source(SafeL2AConfig(root=str(products))).simulated


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(products):
    with pytest.raises(ValueError, match=r"another simulation .*baseline 04\.00"):
        list(open_source(settings(products, baseline="02.14")).discover())


def test_places_and_splits_do_not_depend_on_date_or_baseline(tmp_path):
    by_date = {}
    for baseline in ("02.14", "04.00"):
        config = settings(tmp_path, num_patches=160, num_dates=4, baseline=baseline)
        for name, scenes in scenes_by_product(config).items():
            assert f"_N{baseline.replace('.', '')}_" in name
            facts = {(place, scene.split) for scene in scenes for place in places_of(scene)}
            by_date.setdefault(scenes[0].tile.name, []).append(facts)
    for facts in by_date.values():
        assert len(facts) == 2 * 4
        assert all(found == facts[0] for found in facts)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_dates": 0}, "num_dates is 0"),
        ({"baseline": "99.99"}, "baseline is '99.99'"),
    ],
)
def test_settings_that_no_product_has_are_refused(tmp_path, changed, reason):
    with pytest.raises(ValueError, match=reason):
        settings(tmp_path, **changed)


def test_more_patches_than_ground_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is ground for 28800 patches"):
        list(open_source(settings(tmp_path, num_patches=30_000)).discover())
