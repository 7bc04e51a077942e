"""Every sample and band of every real file, through the shards, against rasterio read by itself."""

import zipfile
from functools import lru_cache

import numpy as np
import pytest
import rasterio

from preprocess.config import FilterConfig, PackConfig, SelectConfig
from preprocess.pack import pack
from preprocess.shards import open_readers, read_manifest
from preprocess.sources.bigearthnet import BigEarthNetV1Config, BigEarthNetV2Config
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.sources.l2a_files import CogL2AConfig, SafeL2AConfig

EUROSAT = [
    "B01",
    "B02",
    "B03",
    "B04",
    "B05",
    "B06",
    "B07",
    "B08",
    "B09",
    "B10",
    "B11",
    "B12",
    "B8A",
]
COG_BANDS = ["B01", "B02", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
# clouds and shadows are pixels too
ALL = FilterConfig(max_cloud=1, max_shadow=1, max_snow=1, min_valid=0.01)
EVERYWHERE = SelectConfig(one_owner=False)


@lru_cache(maxsize=16)
def whole(path):
    with rasterio.open(path) as dataset:
        return dataset.read().astype(np.int64)


def channel(path, number=1):
    return whole(path)[number - 1]


def square(patch_id, size_px):
    column, row = map(int, patch_id.rsplit("_", 2)[1:])
    return np.s_[row * size_px : (row + 1) * size_px, column * size_px : (column + 1) * size_px]


def v1(data):
    root = data / "bigearthnet_v1" / "BigEarthNet-v1.0"
    config = BigEarthNetV1Config(root=str(root))
    return config, 6, lambda i, band, n: channel(root / i / f"{i}_{band}.tif"), 0


def v2(data):
    root = data / "bigearthnet_v2"

    def read(i, band, n):
        product = i.rsplit("_", 2)[0]
        return channel(root / "BigEarthNet-S2" / product / i / f"{i}_{band}.tif")

    return BigEarthNetV2Config(root=str(root)), 2, read, 0


def eurosat(data):
    root = data / "eurosat_ms"
    config = GeotiffConfig(root=str(root), file_bands=EUROSAT, boa_offset=0)
    return config, 198, lambda i, band, n: channel(root / f"{i}.tif", EUROSAT.index(band) + 1), 0


def cog(data):
    root = data / "earth_search_cog"
    config = CogL2AConfig(
        root=str(root), decimation=10, bands=COG_BANDS, filter=ALL, select=EVERYWHERE
    )
    (folder,) = root.glob("**/S2A_29RKH_20200219_0_L2A")
    return config, 91 * 91, lambda i, band, n: channel(folder / f"{band}.tif")[square(i, n)], 0


def safe(data, root=None):
    (folder,) = (data / "sentinel2_safe").glob("*N0400*.SAFE")
    config = SafeL2AConfig(root=str(root or folder), resolution_m=60, filter=ALL, select=EVERYWHERE)

    def read(i, band, n):
        (path,) = folder.glob(f"GRANULE/*/IMG_DATA/R60m/*_{band}_60m.jp2")
        return channel(path)[square(i, n)]

    return config, 4500, read, -1000


def compare(config, read, offset, output):
    """Pack and compare all of it; return the number of samples."""
    pack(PackConfig(source=config, output=str(output)), progress=False)
    compared = 0
    for reader in open_readers(output, read_manifest(output)):
        for row, patch_id in enumerate(reader.index("id")):
            stored = reader.read(row)
            for group in reader.layout.groups:
                for band, pixels in zip(group.bands, stored[group.name], strict=True):
                    cut = read(patch_id, band, group.size_px)
                    wanted = np.where(cut == 0, 0, np.maximum(cut + offset, 1))
                    assert np.array_equal(pixels, wanted), (patch_id, band)
            compared += 1
    return compared


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    # the product of folders takes as long as the one in a zip, which holds the same files
    [v1, v2, eurosat, cog, pytest.param(safe, marks=pytest.mark.exhaustive)],
    ids=["v1", "v2", "eurosat", "cog", "safe"],
)
def test_every_sample_and_band_equals_an_independent_read(real_data, tmp_path, source):
    config, least, read, offset = source(real_data)
    assert compare(config, read, offset, tmp_path) >= least


@pytest.mark.slow
def test_jpeg_2000_inside_a_zip_gives_the_same_bits(real_data, tmp_path):
    (folder,) = (real_data / "sentinel2_safe").glob("*N0400*.SAFE")
    root = tmp_path / "with spaces"
    root.mkdir()
    # as the data hub delivers it: the folder itself inside, not compressed again
    with zipfile.ZipFile(root / f"{folder.stem}.zip", "w") as archive:
        for path in [folder / "MTD_MSIL2A.xml", *folder.rglob("R?0m/*.jp2")]:
            archive.write(path, path.relative_to(folder.parent))
    config, least, read, offset = safe(real_data, root)
    assert compare(config, read, offset, tmp_path / "shards") >= least
