"""GeoTIFFs of any kind: declared bands, units, offsets and labels; pixels to the bit."""

import unicodedata

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from make_data import class_folders, write_geotiff

from preprocess.config import PackConfig, VerifyConfig
from preprocess.pack import pack
from preprocess.plan import read_quarantine
from preprocess.radiometry import Values
from preprocess.shards import LabelSet, open_readers, read_manifest
from preprocess.shards.format import PatchError
from preprocess.sources import open_source
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.verify import verify

# EuroSAT MS stores B8A last.
EUROSAT = [
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
]  # fmt: skip


def eurosat(root, **settings):
    settings = {"name": "eurosat", "file_bands": EUROSAT, "boa_offset": 0, **settings}
    return open_source(GeotiffConfig(root=str(root), **settings))


def read_all(source):
    layout = source.layout()
    return {ref.id: source.read(ref, layout) for ref in source.discover()}


def band_files(folder, stem, bands, *, size_px=12, dtype=np.uint16, value=None, **profile):
    """Write one file a band: every pixel of band i counts value, or 1000 + i."""
    for number, band in enumerate(bands):
        pixels = np.full((1, size_px, size_px), 1000 + number if value is None else value, dtype)
        write_geotiff(folder / f"{stem}{band}.tif", pixels, **profile)


def exports(root, **settings):
    settings = {"size_px": 12, "boa_offset": 0, "labels_from_folders": False, **settings}
    return open_source(GeotiffConfig(root=str(root), **settings))


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
        (np.ones((13, 64, 60), np.uint16), "60 x 64 pixels, source.size_px asks for 64 in b10"),
        (
            np.ones((13, 96, 96), np.uint16),
            "in b10; source.size_px=96 takes them whole, source.cut=true cuts them",
        ),
        (np.ones((13, 64, 64), np.uint8), "uint8, which holds no reflectances"),
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
    with pytest.raises(ValueError, match=r"named after its band.* source\.file_bands="):
        open_source(GeotiffConfig(root=str(tmp_path))).layout()
    with pytest.raises(ValueError, match="B02"):
        open_source(GeotiffConfig(root=str(tmp_path), file_bands=["B01"], bands=["B02"])).layout()


def test_a_table_is_found_in_the_root_or_from_here(tmp_path, monkeypatch):
    class_folders(tmp_path / "tifs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("id,label\nForest_1,here\n")
    source = eurosat(tmp_path / "tifs", label_table="labels.csv")
    assert source.layout().label_sets[0].classes == ("here",)
    (tmp_path / "tifs" / "labels.csv").write_text("id,label\nForest_1,root\n")
    assert source.layout().label_sets[0].classes == ("root",)


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_a_wrong_root_says_what_was_sought(tmp_path, root):
    with pytest.raises(ValueError, match=r"not a folder|expected files with \.tif"):
        list(eurosat(tmp_path / root).discover())


@pytest.mark.parametrize("stem", ["yolo_S2SR_7_2019_38.5_-121.5_msi_", "field/"])
@pytest.mark.parametrize("bands", [("B2", "B8A", "B11"), ("blue", "nir08", "swir16")])
def test_one_file_a_band_in_any_spelling_makes_one_patch(tmp_path, stem, bands):
    band_files(tmp_path / "state", stem, (*bands, "mask"))
    ((name, patch),) = read_all(exports(tmp_path)).items()
    assert name == "state/" + stem.rstrip("_/")
    assert exports(tmp_path).layout().bands == ("B02", "B8A", "B11")
    assert patch.pixels["b10"][:, 0, 0].tolist() == [1000, 1001, 1002]


def test_native_bands_lie_on_their_own_grids(tmp_path):
    for size_px, band, size_m in ((12, "B02", 10), (6, "B05", 20), (2, "B09", 60)):
        band_files(tmp_path, "a_", [band], size_px=size_px, resolution_m=size_m)
    (patch,) = read_all(exports(tmp_path, native=True)).values()
    assert {name: pixels.shape for name, pixels in patch.pixels.items()} == {
        "b10": (1, 12, 12), "b20": (1, 6, 6), "b60": (1, 2, 2)
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"size_px is 13, .* multiple of 2"):
        exports(tmp_path, native=True, size_px=13).layout()


def test_large_files_are_cut_into_whole_patches_where_they_lie(tmp_path):
    pixels = np.arange(1, 30 * 26 + 1, dtype=np.uint16).reshape(1, 30, 26)
    write_geotiff(tmp_path / "a.tif", pixels)
    source = exports(tmp_path, cut=True, file_bands=["B02"], places_from_corners=True)
    found = read_all(source)
    assert list(found) == ["a_000_000", "a_000_001", "a_001_000", "a_001_001"]
    patch = found["a_001_000"]
    assert np.array_equal(patch.pixels["b10"], pixels[:, :12, 12:24])
    assert patch.transform == (10, 0, 404520, 0, -10, 5342400)
    assert patch.place == "32633_404520_5342400"


def test_pieces_of_a_file_are_places_of_their_own_on_all_dates(tmp_path):
    for day in ("20200101", "20200701"):
        write_geotiff(tmp_path / "007" / f"{day}.tif", np.full((1, 24, 12), 500, np.uint16))
    pattern = r"(?P<place>\d+)/(?P<acquired>\d{8})"
    settings = {"file_bands": ["B02"], "path_pattern": pattern}
    found = read_all(exports(tmp_path, cut=True, **settings)).values()
    assert [patch.place for patch in found] == 2 * ["007_000_000", "007_000_001"]


@pytest.mark.parametrize("stamp", ["2020111T101031", "2020111", "20201301", "20200131T1010"])
def test_a_time_that_may_be_read_in_two_ways_is_rejected(tmp_path, stamp):
    write_geotiff(tmp_path / f"{stamp}.tif", np.full((1, 12, 12), 500, np.uint16))
    source = exports(tmp_path, file_bands=["B02"], path_pattern=r"(?P<acquired>\d+T?\d*)")
    with pytest.raises(PatchError, match=rf"acquired is '{stamp}', not as 20200131T101031"):
        read_all(source)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_place_is_the_same_text_however_a_path_is_composed(tmp_path, form):
    folder = tmp_path / unicodedata.normalize(form, "Fürth_1")
    write_geotiff(folder / "a.tif", np.full((1, 12, 12), 500, np.uint16))
    source = exports(tmp_path, file_bands=["B02"], path_pattern="(?P<place>Fü.*)/")
    assert [patch.place for patch in read_all(source).values()] == ["Fürth_1"]


def test_a_folder_and_a_prefix_of_one_name_are_one_id_twice(tmp_path):
    band_files(tmp_path / "tifs", "a/", ["B02"])
    band_files(tmp_path / "tifs", "a_", ["B02"], value=1500)
    config = PackConfig(
        source=exports(tmp_path / "tifs").config, output=str(tmp_path / "s"), max_rejected=0.5
    )
    assert pack(config, progress=False).rows == 1
    (rejected,) = read_quarantine(tmp_path / "s" / "rejected.jsonl")
    assert rejected.reason == "id a appears twice: a has it"


def test_an_excluded_file_is_not_asked_for_its_offset(tmp_path):
    name = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
    band_files(tmp_path / "tifs", f"{name}/", ["B02"], value=1500)
    band_files(tmp_path / "tifs", "a/", ["B02"])
    (tmp_path / "out.txt").write_text(name)
    lists = [str(tmp_path / "out.txt")]
    assert list(read_all(exports(tmp_path / "tifs", exclude_lists=lists))) == ["a"]


def test_excluded_are_whole_ids_of_patches_or_of_the_files_they_are_cut_from(tmp_path):
    for name in ("a", "ab", "b"):
        write_geotiff(tmp_path / f"{name}.tif", np.full((1, 24, 12), 500, np.uint16))
    (tmp_path / "out.txt").write_text("a\nb_000_001\n")
    settings = {"file_bands": ["B02"], "exclude_lists": [str(tmp_path / "out.txt")]}
    found = read_all(exports(tmp_path, cut=True, **settings))
    assert list(found) == ["ab_000_000", "ab_000_001", "b_000_000"]


def test_names_that_exclude_nothing_are_counted_in_one_line(tmp_path, caplog):
    for name in ("a", "ab"):
        write_geotiff(tmp_path / f"{name}.tif", np.full((1, 12, 12), 500, np.uint16))
    (tmp_path / "out.txt").write_text("a.tif\nelsewhere\nx/ab\n")
    lists = [str(tmp_path / "out.txt")]
    assert list(read_all(exports(tmp_path, file_bands=["B02"], exclude_lists=lists))) == ["ab"]
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("2 of 3 names on exclusion lists exclude nothing: elsewhere")


def test_the_root_is_walked_once_for_all_questions(tmp_path, monkeypatch):
    write_geotiff(tmp_path / "a.tif", np.full((1, 12, 12), 500, np.uint16))
    source = exports(tmp_path, file_bands=["B02"])
    assert list(read_all(source)) == ["a"]
    monkeypatch.setattr("preprocess.sources.base.os.scandir", None)
    assert source.processing_level() == ""
    assert list(read_all(source)) == ["a"]


@pytest.mark.parametrize(
    ("dtype", "values"), [("float32", Values.reflectance), ("float64", Values.reflectance)]
)
def test_reflectances_with_gaps_become_stored_values(tmp_path, dtype, values):
    pixels = np.full((1, 12, 12), 0.1234, dtype)
    pixels[0, 0, :4] = np.nan, 0, -0.002, 1.5
    write_geotiff(tmp_path / "a.tif", pixels)
    (patch,) = read_all(exports(tmp_path, file_bands=["B02"], values=values)).values()
    assert patch.pixels["b10"][0, 0, :5].tolist() == [0, 0, 1, 15000, 1234]


@pytest.mark.parametrize("tagged", [True, False])
def test_nodata_is_what_tag_or_setting_marks_in_each_band(tmp_path, tagged):
    pixels = np.full((2, 12, 12), 500, np.int16)
    pixels[:, 0, 0] = -9999
    pixels[1, 0, 1] = 7
    write_geotiff(tmp_path / "a.tif", pixels, **({"nodata": -9999} if tagged else {}))
    declared = {} if tagged else {"nodata": -9999}
    (patch,) = read_all(exports(tmp_path, file_bands=["B02", "B03"], **declared)).values()
    assert patch.pixels["b10"][:, 0, :3].tolist() == [[0, 500, 500], [0, 7, 500]]
    # the setting of a band replaces its tag, which then is a number like any other
    source = exports(tmp_path, file_bands=["B02", "B03"], nodata_by_band={"B3": 7}, **declared)
    with pytest.raises(PatchError, match=r"holds -9999, .* say so: source\.nodata=-9999"):
        read_all(source)


@pytest.mark.parametrize("mark", [{"nodata": -9999.0}, {"nodata_by_band": {"B03": 0.5}}])
def test_a_declared_nodata_that_the_files_cannot_hold_is_refused(tmp_path, mark):
    write_geotiff(tmp_path / "a.tif", np.full((2, 12, 12), 500, np.uint16))
    with pytest.raises(PatchError, match=r"source\.nodata is .*, which pixels of uint16 cannot be"):
        read_all(exports(tmp_path, file_bands=["B02", "B03"], **mark))


def test_nodata_of_a_band_that_no_file_holds_is_refused(tmp_path):
    band_files(tmp_path, "a_", ["B02", "B8A"])
    for bands in ([], ["B02"]):
        with pytest.raises(ValueError, match=r"source\.nodata_by_band names B08, which"):
            exports(tmp_path, nodata_by_band={"B8": 7}, file_bands=bands).layout()


def test_a_declared_offset_is_taken_out_and_recorded(tmp_path):
    pixels = np.full((1, 12, 12), 1200, np.uint16)
    pixels[0, 0, 0] = 0
    write_geotiff(tmp_path / "a.tif", pixels)
    (patch,) = read_all(exports(tmp_path, file_bands=["B02"], boa_offset=-1000)).values()
    assert patch.pixels["b10"][0, 0, :2].tolist() == [0, 200]
    assert (patch.offset, patch.offset_authority) == (-1000, "user")


def test_an_undeclared_offset_is_refused_unless_a_product_name_tells(tmp_path):
    name = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
    band_files(tmp_path / "x", f"{name}/", ["B02"], value=1500)
    (patch,) = read_all(exports(tmp_path, boa_offset=None)).values()
    assert (patch.offset, patch.offset_authority, patch.baseline) == (-1000, "name", "04.00")
    assert (patch.tile, patch.acquired) == ("33NZA", "2022-07-06T08:56:11Z")
    band_files(tmp_path / "x", "other_", ["B02"], value=1500)
    with pytest.raises(ValueError, match=r"neither metadata nor name .* set source\.boa_offset"):
        read_all(exports(tmp_path, boa_offset=None))


def test_dark_pixels_contradict_an_offset_before_packing_starts(tmp_path):
    band_files(tmp_path, "a_", ["B02"], value=300)
    with pytest.raises(ValueError, match="no offset seems to be in the files; correct source"):
        list(exports(tmp_path, boa_offset=-1000).discover())
    taken = exports(tmp_path, boa_offset=-1000, override_offset=True)
    assert read_all(taken)["a"].pixels["b10"].max() == 1


@pytest.mark.parametrize(
    ("value", "dtype", "settings", "reason"),
    [
        (0.2, np.float32, {}, r"no number is above 0\.2 .* set source\.values=reflectance"),
        (900, np.float32, {"values": Values.reflectance}, r"set source\.values=digital_numbers"),
        (np.inf, np.float32, {}, "holds infinite numbers"),
        (70000, np.int32, {}, "holds 70000, above the 65535"),
    ],
)
def test_numbers_of_another_unit_are_refused_with_the_setting(
    tmp_path, value, dtype, settings, reason
):
    band_files(tmp_path, "a_", ["B02"], dtype=dtype, value=value)
    with pytest.raises(PatchError, match=reason):
        read_all(exports(tmp_path, **settings))


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        ({"crs": "EPSG:3857"}, "EPSG 3857, whose metres are not the ground's"),
        ({"resolution_m": 8.2}, r"pixels of 8\.2 x 8\.2 m by EPSG 32633, not of 10 m"),
    ],
)
def test_a_grid_that_is_not_in_metres_of_ground_is_refused_until_declared(
    tmp_path, profile, reason
):
    band_files(tmp_path, "a_", ["B02"], **profile)
    with pytest.raises(PatchError, match=reason):
        read_all(exports(tmp_path))
    assert read_all(exports(tmp_path, any_grid=True))


def test_a_patch_without_one_band_is_named_and_the_others_are_read(tmp_path):
    band_files(tmp_path, "a_", ["B02", "B03"])
    band_files(tmp_path, "b_", ["B02"])
    source = exports(tmp_path)
    whole, torn = source.discover()
    assert source.read(whole, source.layout()).id == "a"
    with pytest.raises(PatchError, match="B03 is missing"):
        source.read(torn, source.layout())


def test_a_band_in_two_spellings_is_named(tmp_path):
    band_files(tmp_path, "a_", ["B02", "B2"])
    with pytest.raises(PatchError, match=r"holds B02 twice: a_B02\.tif and a_B2\.tif"):
        read_all(exports(tmp_path))


def test_band_names_in_a_file_contradict_a_wrong_declaration(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", np.full((2, 12, 12), 500, np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B3", "B2")
    with pytest.raises(PatchError, match="calls its band 1 B3, declared is B02"):
        read_all(exports(tmp_path, file_bands=["B02", "B03"]))
    assert read_all(exports(tmp_path, file_bands=["B03", "B02"]))


def table(path, rows):
    """Write (id, label, split) as CSV or parquet; parquet gets labels as lists."""
    if path.suffix == ".csv":
        lines = ["id,label,split", *(",".join((n, ";".join(c), s)) for n, c, s in rows)]
        path.write_text("\n".join(lines))
    else:
        columns = {"id": [r[0] for r in rows], "label": [r[1] for r in rows]}
        pq.write_table(pa.table({**columns, "split": [r[2] for r in rows]}), path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_names_classes_and_splits_by_whole_id(tmp_path, suffix):
    for name in ("a_1", "a_10", "b"):
        band_files(tmp_path / "x", f"{name}_", ["B02"])
    rows = [("a_1.tif", ["maize"], "val"), ("x/b", ["maize", "rice"], "train")]
    table(tmp_path / f"labels{suffix}", rows)
    source = exports(tmp_path, label_table=f"labels{suffix}", split_column="split")
    assert source.layout().label_sets == (LabelSet("geotiff", "multi", ("maize", "rice")),)
    assert [(ref.id, ref.split, ref.labels) for ref in source.discover()] == [
        ("x/a_1", "validation", {"geotiff": ("maize",)}),
        ("x/a_10", "", {}),
        ("x/b", "train", {"geotiff": ("maize", "rice")}),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,label\na,x", "has no column 'id'; it has name, label"),
        (
            "id,label,split\na,x,validate",
            "the split of a in .* is 'validate'; give train, validation, val, test, or leave it",
        ),
        ("id,label,split\na,x,\na.tif,y,", "lists a.tif twice"),
        ("id,label,split\nz,x,", "none of the 1 patches .* its ids should look like a"),
        ("\xff\xfe", "cannot be read|no column"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, text, reason):
    band_files(tmp_path, "a_", ["B02"])
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    source = exports(tmp_path, label_table="labels.csv", split_column="split")
    with pytest.raises(ValueError, match=reason):
        list(source.discover())


def test_settings_that_exclude_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"source\.native is true, but source\.file_bands"):
        GeotiffConfig(native=True, file_bands=["B02"])
    with pytest.raises(ValueError, match=r"override_offset is true, but source\.boa_offset"):
        GeotiffConfig(override_offset=True)
    with pytest.raises(ValueError, match="missing"):
        exports(tmp_path, label_table="nowhere.csv", file_bands=["B02"])._read_table()


def test_south_up_files_are_called_that(tmp_path):
    path = tmp_path / "a_B02.tif"
    band_files(tmp_path, "a_", ["B02"])
    with rasterio.open(path, "r+") as dataset:
        dataset.transform = rasterio.Affine(10, 0, 5e5, 0, 10, 5e6)
    with pytest.raises(PatchError, match=r"is south-up .*export north-up"):
        read_all(exports(tmp_path))


def test_a_crs_without_a_code_is_stored_as_text(tmp_path):
    crs = "+proj=tmerc +lat_0=5 +lon_0=15.5 +k=0.9996 +x_0=500000 +datum=WGS84 +units=m"
    band_files(tmp_path / "tifs", "a_", ["B02"], crs=crs)
    band_files(tmp_path / "tifs", "b_", ["B02"])
    source = exports(tmp_path / "tifs").config
    pack(PackConfig(source=source, output=str(tmp_path / "s")), progress=False)
    (reader,) = open_readers(tmp_path / "s", read_manifest(tmp_path / "s"))
    assert reader.index("epsg").tolist() == [0, 32633]
    with h5py.File(tmp_path / "s" / "shard-00000.h5") as file:
        first, second = file["index/crs_wkt"][()].tolist()
    assert "15.5" in first.decode()
    assert second == b""
    assert verify(VerifyConfig(shards=str(tmp_path / "s")), progress=False).problems == []


@pytest.mark.parametrize(("offset", "declared"), [(-0.1, 0), (0, -1000)])
def test_scale_tags_that_contradict_the_declared_offset_are_refused(tmp_path, offset, declared):
    band_files(tmp_path, "a_", ["B02"], value=1500)
    with rasterio.open(tmp_path / "a_B02.tif", "r+") as dataset:
        dataset.scales, dataset.offsets = (1e-4,), (offset,)
    with pytest.raises(ValueError, match="tags"):
        read_all(exports(tmp_path, boa_offset=declared))
    (patch,) = read_all(exports(tmp_path, boa_offset=round(offset * 10000))).values()
    assert (patch.pixels["b10"] == 1500 + offset * 10000).all()
    assert patch.offset_authority == "tags"


def degrees(root, place, stamp, *, shift=0.5):
    """Write bands as Earth Engine exports them in degrees: coarse grids begin half a pixel off."""
    px, py = 1.2e-4, 9.0e-5
    folder = root / place / f"{stamp}_T32TQS"
    folder.mkdir(parents=True)
    for band, size_px, k in (("B2", 24, 1), ("B5", 12, 2), ("B1", 4, 6)):
        off = 0 if k == 1 else shift
        with rasterio.open(
            folder / f"{band}.tif", "w", driver="GTiff", height=size_px, width=size_px, count=1,
            dtype="uint16", crs="EPSG:4326",
            transform=rasterio.Affine(px * k, 0, 10 - off * px, 0, -py * k, 45 + off * py),
        ) as file:  # fmt: skip
            file.write(np.full((1, size_px, size_px), 700, np.uint16))


SSL4EO = {
    "size_px": 24,
    "native": True,
    "any_grid": True,
    "max_shift_px": 0.5,
    "path_pattern": r"(?P<place>\d{7})/(?P<acquired>\d{8}T\d{6})_T(?P<tile>\w{5})",
}


def test_grids_that_differ_by_part_of_a_coarse_pixel_are_taken_where_asked_for(tmp_path):
    degrees(tmp_path, "0000200", "20190619T164859")
    with pytest.raises(PatchError, match=r"differ by 0.25 pixels .*source.max_shift_px"):
        read_all(exports(tmp_path, **{**SSL4EO, "max_shift_px": 0.0}))
    (patch,) = read_all(exports(tmp_path, **SSL4EO)).values()
    assert {name: pixels.shape for name, pixels in patch.pixels.items()} == {
        "b10": (1, 24, 24),
        "b20": (1, 12, 12),
        "b60": (1, 4, 4),
    }
    degrees(tmp_path / "far", "0000201", "20190619T164859", shift=2)
    with pytest.raises(PatchError, match="begins at EPSG 4326"):
        read_all(exports(tmp_path / "far", **SSL4EO))


def test_folder_names_give_place_date_and_tile(tmp_path):
    degrees(tmp_path, "0000200", "20190619T164859")
    (patch,) = read_all(exports(tmp_path, **SSL4EO)).values()
    assert (patch.place, patch.acquired, patch.tile) == ("0000200", "2019-06-19T16:48:59Z", "32TQS")


@pytest.mark.parametrize("pattern", ["(", "(?P<date>x)", "x"])
def test_a_pattern_that_says_nothing_is_refused(pattern):
    with pytest.raises(ValueError, match=r"source\.path_pattern"):
        GeotiffConfig(path_pattern=pattern)


def test_a_cut_says_what_it_leaves_out_and_which_size_keeps_more(tmp_path, caplog):
    band_files(tmp_path, "a_", ["B02"], size_px=224)
    source = exports(tmp_path, cut=True, size_px=120)
    assert len(list(source.discover())) == 1
    (line,) = [record.message for record in caplog.records if "source.cut" in record.message]
    assert "leaves out 71.3 % of the ground" in line
    assert "source.size_px=112 keeps 100.0 %" in line
    assert len(list(exports(tmp_path, cut=True, size_px=112).discover())) == 4


@pytest.mark.parametrize(
    ("names", "declared", "level"),
    [
        (["a"], "", ""),
        (["a"], "L1C", "L1C"),
        (["S2A_MSIL2A_20190619T164859_N0212_R069_T16TDM_20190619T190000/x"], "", "L2A"),
        (["S2A_MSIL1C_20190619T164859_N0207_R069_T16TDM_20190619T190000/x"], "", "L1C"),
    ],
)
def test_the_processing_level_is_declared_or_that_of_the_products(tmp_path, names, declared, level):
    for name in names:
        band_files(tmp_path / name, "", ["B02"])
    source = exports(tmp_path, processing_level=declared)
    assert source.processing_level() == level
    pack(PackConfig(source=source.config, output=str(tmp_path / "s")), progress=False)
    assert read_manifest(tmp_path / "s").processing_level == level


def test_two_processing_levels_are_not_mixed(tmp_path):
    for level in ("L1C", "L2A"):
        product = f"S2A_MSI{level}_20190619T164859_N0212_R069_T16TDM_20190619T190000"
        band_files(tmp_path / product / "x", "", ["B02"])
    with pytest.raises(ValueError, match="L1C and L2A; pack one processing level"):
        exports(tmp_path).processing_level()
