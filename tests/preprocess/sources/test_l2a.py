"""Products on their grid: pixels to the bit, places over dates, a reason for what is left out."""

import shutil
import zipfile

import numpy as np
import pytest
import rasterio
from make_products import safe_product, zipped
from rasterio.windows import Window

from preprocess.config import FilterConfig, PackConfig, SelectConfig, SplitConfig
from preprocess.pack import pack
from preprocess.radiometry import harmonise
from preprocess.raster import session, to_degrees
from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import Dropped, PatchError, PatchRef
from preprocess.sources import open_source
from preprocess.sources.l2a_files import CogL2AConfig, SafeL2AConfig

# every one reads whole tiles, most for a second or two
pytestmark = pytest.mark.slow

WINTER = "20190110T185739"
COG_BANDS = ["B01", "B02", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]


def safe(root, **settings):
    return SafeL2AConfig(root=str(root), **settings)


def discovered(config):
    items = list(open_source(config).discover())
    refs = [item for item in items if isinstance(item, PatchRef)]
    return refs, [item for item in items if isinstance(item, Dropped)]


def reasons(config):
    return {item.reason: item.places for item in discovered(config)[1]}


def test_a_real_cog_is_placed_and_dated_by_its_item(real_data):
    config = CogL2AConfig(root=str(real_data / "earth_search_cog"), decimation=10, bands=COG_BANDS)
    source, (refs, _) = open_source(config), discovered(config)
    assert len(refs) == 6586
    with session():
        patch = source.read(refs[0], source.layout())
    assert (patch.offset, patch.offset_authority) == (0, "name")
    assert (patch.tile, patch.acquired) == ("29RKH", "2020-02-19T11:34:25Z")


@pytest.mark.parametrize("pack_up", [lambda folder: folder, zipped])
@pytest.mark.parametrize("xml", [True, False])
def test_a_place_keeps_its_name_over_dates_and_processings(tmp_path, pack_up, xml):
    squares = {(3, 7): 4, (4, 7): 5}
    pack_up(safe_product(tmp_path, squares, stamp=WINTER, baseline="0211", xml=xml))
    pack_up(safe_product(tmp_path, squares, baseline="0500", xml=xml))
    pack(PackConfig(source=safe(tmp_path), output=str(tmp_path / "shards")), progress=False)
    (reader,) = open_readers(tmp_path / "shards", read_manifest(tmp_path / "shards"))
    assert reader.index("place").tolist() == ["10SFH_03_07", "10SFH_04_07"] * 2
    assert {day[:10] for day in reader.index("acquired")} == {"2019-01-10", "2019-07-15"}
    assert reader.index("offset").tolist() == [0, 0, -1000, -1000]
    assert set(reader.index("offset_authority")) == {"xml" if xml else "name"}
    assert all(np.array_equal(reader.read(0)[g], reader.read(2)[g]) for g in reader.read(0))
    assert reader.fractions("scl")[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_native_pixels_equal_an_independent_read(tmp_path):
    folder = safe_product(tmp_path, {(90, 0): 4}, baseline="0400")
    config = safe(tmp_path, select=SelectConfig(one_owner=False))
    source, ((ref,), _) = open_source(config), discovered(config)
    patch = source.read(ref, source.layout())
    assert {name: pixels.shape for name, pixels in patch.pixels.items()} == {
        "b10": (4, 120, 120), "b20": (6, 60, 60), "b60": (2, 20, 20)
    }  # fmt: skip
    for group in source.layout().groups:
        for band, pixels in zip(group.bands, patch.pixels[group.name], strict=True):
            (path,) = folder.rglob(f"*_{band}_*.tif")
            with rasterio.open(path) as dataset:
                n = group.size_px
                cut = dataset.read(1)[0:n, 90 * n : 91 * n]
            assert np.array_equal(pixels, harmonise(cut, -1000))
    assert patch.transform == (10, 0, 600000 + 90 * 1200, 0, -10, 4200000)


def test_everything_left_out_has_its_reason(tmp_path):
    squares = {(1, 1): 4, (2, 1): 9, (3, 1): 3, (4, 1): 11, (5, 1): 4, (90, 1): 4, (6, 1): 4}
    safe_product(tmp_path, squares)
    names = tmp_path / "names.csv"
    names.write_text("10SFH_05_01\n10SFH_06_0\n")  # a part of a name excludes nothing
    config = safe(tmp_path, select=SelectConfig(exclude_lists=[str(names)]))
    refs, _ = discovered(config)
    assert [ref.id[-12:] for ref in refs] == ["184921_01_01", "184921_06_01"]
    found = reasons(config)
    assert found["cloud"] == ("10SFH_02_01",)
    assert found["cloud shadow"] == ("10SFH_03_01",)
    assert found["snow"] == ("10SFH_04_01",)
    assert found["on an exclusion list"] == ("10SFH_05_01",)
    assert "10SFH_90_01" in found["ground that another tile owns"]
    assert len(found["nodata"]) == 83 * 83 - 6
    lenient = FilterConfig(max_cloud=1, max_shadow=1, max_snow=1)
    assert len(discovered(safe(tmp_path, filter=lenient))[0]) == 6


def test_no_patch_touches_an_excluded_area(tmp_path):
    safe_product(tmp_path, {(1, 1): 4, (2, 1): 4, (4, 1): 4})
    x, y = 600000 + 2.5 * 1200, 4200000 - 1.5 * 1200  # the middle of one square
    (west,), (south,) = to_degrees(32610, np.array([x]), np.array([y]))
    box = [float(west), float(south), float(west) + 1e-4, float(south) + 1e-4]
    refs, _ = discovered(safe(tmp_path, select=SelectConfig(exclude_boxes=[box])))
    assert [ref.id[-6:] for ref in refs] == ["_01_01", "_04_01"]
    assert reasons(safe(tmp_path, select=SelectConfig(exclude_boxes=[box])))[
        "in an excluded area"
    ] == ("10SFH_02_01",)


def test_products_are_chosen_by_date_and_cloud_and_processed_once(tmp_path):
    squares = {(1, 1): 4}
    safe_product(tmp_path, squares, stamp=WINTER, cloud=90)
    safe_product(tmp_path, squares, baseline="0212")
    safe_product(tmp_path, squares, baseline="0500")
    refs, _ = discovered(safe(tmp_path, select=SelectConfig(max_scene_cloud=20)))
    assert ["_N0500_" in ref.id for ref in refs] == [True]
    found = reasons(safe(tmp_path, select=SelectConfig(date_to="2019-02-01")))
    assert "acquired outside the dates" in found
    assert "another processing of the same acquisition is taken" in reasons(safe(tmp_path))


def test_a_product_beside_its_zip_is_packed_once(tmp_path):
    folder = safe_product(tmp_path / "safe", {(1, 1): 4, (2, 2): 4})
    shutil.make_archive(str(folder.with_suffix("")), "zip", folder.parent, folder.name)
    shutil.copytree(folder, tmp_path / "safe" / "copy" / folder.name)
    config = PackConfig(source=safe(tmp_path / "safe"), output=str(tmp_path / "s"))
    totals = pack(config, progress=False).provenance["selection"]
    assert totals["kept"] == 2
    assert totals["another product of the same acquisition has it"] == 4


def test_two_products_of_one_acquisition_share_its_places(tmp_path):
    safe_product(tmp_path, {(1, 1): 4, (2, 2): 4}, made="20190715T200000")
    safe_product(tmp_path, {(2, 2): 4, (3, 3): 4}, made="20190715T210000")
    refs, _ = discovered(safe(tmp_path))
    assert [(ref.id[-13:-6], ref.id[-6:]) for ref in refs] == [
        ("T200000", "_01_01"), ("T200000", "_02_02"), ("T210000", "_03_03")
    ]  # fmt: skip
    safe_product(tmp_path, {(2, 2): 4}, stamp=WINTER)
    assert [ref.id[-6:] for ref in discovered(safe(tmp_path))[0]].count("_02_02") == 2


def test_a_root_that_links_to_a_product_of_another_name_is_read(tmp_path):
    link, store = safe_product(tmp_path, {(1, 1): 4}), tmp_path / "store"
    store.mkdir()
    link.rename(store / "1f3a")
    link.symlink_to(store / "1f3a")
    source, ((ref,), _) = open_source(safe(link)), discovered(safe(link))
    assert source.read(ref, source.layout()).product == link.stem


def test_a_classification_of_another_resolution_is_refused(tmp_path):
    folder = safe_product(tmp_path, {(1, 1): 4})
    (path,) = folder.rglob("*_SCL_20m.tif")
    with rasterio.open(path) as dataset:
        profile = {**dataset.profile, "width": 10980, "height": 10980}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(np.full((120, 120), 4, np.uint8), 1, window=Window(120, 120, 120, 120))
    with pytest.raises(PatchError, match=r"SCL_20m\.tif: has 10980 x 10980 .* 5490 of 20 m"):
        discovered(safe(tmp_path))


def test_places_on_too_few_dates_are_dropped(tmp_path):
    safe_product(tmp_path, {(1, 1): 4, (2, 2): 4}, stamp=WINTER)
    safe_product(tmp_path, {(1, 1): 4})
    refs, _ = discovered(safe(tmp_path, select=SelectConfig(min_dates=2)))
    assert [ref.id[-6:] for ref in refs] == ["_01_01", "_01_01"]


def test_blocks_stay_whole_over_dates_and_are_stored(tmp_path):
    squares = {(column, row): 4 for column in range(0, 80, 2) for row in (3, 40)}
    safe_product(tmp_path, squares, stamp=WINTER)
    safe_product(tmp_path, squares)
    split = SplitConfig(block_km=12, buffer_km=1.2, validation=0.3, test=0.3)
    refs, dropped = discovered(safe(tmp_path, split=split))
    assert "near ground of another split" in {item.reason for item in dropped}
    split_of = {}
    for ref in refs:
        assert split_of.setdefault(ref.block, ref.split) == ref.split != ""
    assert len(set(split_of.values())) == 3
    by_place = [{ref.id[-6:]: (ref.block, ref.split) for ref in refs if day in ref.id}
                for day in ("20190110", "20190715")]  # fmt: skip
    assert by_place[0] == by_place[1]


def test_the_table_counts_every_square_once(tmp_path):
    safe_product(tmp_path, {(1, 1): 4, (2, 1): 9})
    manifest = pack(PackConfig(source=safe(tmp_path), output=str(tmp_path / "s")), progress=False)
    totals = manifest.provenance["selection"]
    assert totals["kept"] == manifest.rows == 1
    assert sum(totals.values()) == 91 * 91
    last = (tmp_path / "s" / "selection.csv").read_text().splitlines()[-1]
    assert last == ",".join(["all", *map(str, totals.values())])


def test_a_declaration_against_metadata_and_pixels_is_refused(tmp_path):
    safe_product(tmp_path, {(1, 1): 6}, baseline="0400")
    with pytest.raises(ValueError, match="user says that the offset is 0, xml says -1000"):
        discovered(safe(tmp_path, boa_offset=0))
    with pytest.raises(ValueError, match=r"source\.override_offset is true, but"):
        safe(tmp_path, override_offset=True)


def test_a_product_that_nobody_vouches_for_is_refused_until_declared(tmp_path):
    safe_product(tmp_path, {(1, 1): 6}, baseline="9999", xml=False)
    with pytest.raises(ValueError, match=r"neither metadata nor name .* set source\.boa_offset"):
        discovered(safe(tmp_path))
    refs, _ = discovered(safe(tmp_path, boa_offset=0))
    assert len(refs) == 1
    with pytest.raises(ValueError, match="no offset seems to be in the files"):
        discovered(safe(tmp_path, boa_offset=-1000))


def test_a_real_item_without_a_band_names_it(real_data):
    config = CogL2AConfig(root=str(real_data / "earth_search_cog"), decimation=10)
    with pytest.raises(ValueError, match=r"holds no B03 at 100 m; complete the product"):
        discovered(config)


def test_a_missing_band_is_named(tmp_path, real_data):
    (root,) = (real_data / "sentinel2_safe").glob("*N0400*.SAFE")
    with pytest.raises(ValueError, match=r"holds no B02 at 10 m; complete the product"):
        discovered(safe(root))


def test_a_corrupt_raster_is_one_rejection_with_its_file(tmp_path):
    folder = safe_product(tmp_path, {(1, 1): 4})
    source, ((ref,), _) = open_source(safe(tmp_path)), discovered(safe(tmp_path))
    (path,) = folder.rglob("*_B03_10m.tif")
    path.write_bytes(path.read_bytes()[:200])
    with session(), pytest.raises(PatchError, match=r"B03_10m\.tif: cannot be read as a raster"):
        source.read(ref, source.layout())


def test_broken_metadata_and_zips_are_named(tmp_path):
    folder = safe_product(tmp_path, {(1, 1): 4})
    (folder / "MTD_MSIL2A.xml").write_text("<open>")
    with pytest.raises(ValueError, match=r"MTD_MSIL2A\.xml is not the metadata of a product"):
        discovered(safe(tmp_path))
    path = zipped(folder)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (info,) = [i for i in archive.infolist() if i.filename.endswith("MTD_MSIL2A.xml")]
    data = info.header_offset + 30 + len(info.filename)
    path.write_bytes(content[:data] + b"\xff" + content[data + 1 :])
    with pytest.raises(ValueError, match=r"MTD_MSIL2A\.xml is not the metadata of a product"):
        discovered(safe(tmp_path))
    path.write_bytes(content[:1000])
    with pytest.raises(ValueError, match="cannot be read as a zip"):
        discovered(safe(tmp_path))


@pytest.mark.parametrize(("offset", "contradicts"), [(-0.1, True), (0.0, False)])
def test_scale_tags_of_the_files_are_claims_about_the_offset(tmp_path, offset, contradicts):
    folder = safe_product(tmp_path, {(1, 1): 4})
    for path in folder.rglob("*_B0[2348]_10m.tif"):
        with rasterio.open(path, "r+") as dataset:
            dataset.scales, dataset.offsets = (1e-4,), (offset,)
    if contradicts:
        with pytest.raises(ValueError, match=r"tags says that the offset is -1000, xml says 0"):
            discovered(safe(tmp_path))
    else:
        (ref,), _ = discovered(safe(tmp_path))
        source = open_source(safe(tmp_path))
        assert source.read(ref, source.layout()).offset_authority == "xml"


@pytest.mark.parametrize(
    ("crs", "step", "reason"),
    [
        ("EPSG:32610", (10, 10), "is south-up"),
        ("EPSG:3857", (10, -10), "metres are not the ground's"),
        ("EPSG:4326", (10, -10), "whose units are not metres"),
        ("+proj=tmerc +lat_0=5 +lon_0=15.5 +units=m", (10, -10), "not in the UTM zone of tile"),
        ("EPSG:32611", (10, -10), "EPSG 32611, not in the UTM zone of tile 10SFH"),
    ],
)
def test_a_product_on_another_grid_is_refused(tmp_path, crs, step, reason):
    folder = safe_product(tmp_path, {(1, 1): 4})
    (path,) = folder.rglob("*_B02_10m.tif")
    with rasterio.open(path, "r+") as dataset:
        dataset.crs = crs
        dataset.transform = rasterio.Affine(step[0], 0, 600000, 0, step[1], 4200000)
    with pytest.raises(PatchError, match=reason):
        discovered(safe(tmp_path))
