"""Images and arrays that the example converts are packed as they are, or refused in one line."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import REPOSITORY

from preprocess.config import PackConfig
from preprocess.pack import PackError, pack
from preprocess.raster import to_degrees
from preprocess.shards import open_readers, read_manifest
from preprocess.sources.geotiff_files import GeotiffConfig

SCRIPT = REPOSITORY / "examples" / "images_to_geotiff.py"
RGB = "B04,B03,B02"
IMAGE = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def convert(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False
    )


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    size = {"count": count, "height": height, "width": width}
    with rasterio.open(path, "w", driver="PNG", dtype="uint8", **size) as file:
        file.write(pixels)
    return path


def packed(root: Path, shards: Path, **settings):
    """Return pixels, labels, places and corners as they stand in the shards, by id."""
    config = GeotiffConfig(root=str(root), boa_offset=0, **settings)
    pack(PackConfig(source=config, output=str(shards)))
    (reader,) = open_readers(shards, read_manifest(shards))
    ids = reader.index("id").tolist()
    facts = {name: reader.index(name) for name in ("place", "epsg", "transform")}
    return {
        name: (reader.read(row)["b10"], {key: values[row] for key, values in facts.items()})
        for row, name in enumerate(ids)
    }, reader


def test_images_in_class_folders_keep_their_pixels_and_classes(tmp_path):
    black = IMAGE.copy()
    black[:, 0, 0] = 0
    write_png(tmp_path / "in" / "Forest" / "a.png", IMAGE)
    write_png(tmp_path / "in" / "River" / "b.PNG", black)
    output = tmp_path / "out put"
    done = convert(tmp_path / "in", output, "--bands", RGB)
    assert done.returncode == 0, done.stderr
    assert f"source.root={output}" in shlex.split(done.stdout)  # as a shell reads it
    assert "2 files in" in done.stdout
    assert "source.any_grid=true" in done.stdout  # nobody said where they lie
    bands = RGB.split(",")
    settings = {"file_bands": bands, "size_px": 16, "any_grid": True}
    patches, reader = packed(output, tmp_path / "shards", **settings)
    assert list(patches) == ["Forest/a", "River/b"]
    assert np.array_equal(patches["Forest/a"][0], IMAGE.clip(1))
    assert np.array_equal(patches["River/b"][0], black.clip(1))  # black is no nodata
    assert reader.labels("geotiff").tolist() == [[1, 0], [0, 1]]


def test_an_order_of_bands_other_than_the_images_is_refused_when_packing(tmp_path):
    write_png(tmp_path / "in" / "a.png", IMAGE)
    convert(tmp_path / "in", tmp_path / "out", "--bands", RGB)
    with pytest.raises(PackError, match="calls its band 1 B04, declared is B02"):
        packed(
            tmp_path / "out",
            tmp_path / "shards",
            file_bands=["B02", "B03", "B04"],
            size_px=16,
            any_grid=True,
        )


def test_an_archive_with_a_table_gets_positions_and_folders(tmp_path):
    image = write_png(tmp_path / "x.png", IMAGE)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.add(image, "Forest/here.png")
        archive.add(image, "Forest/south.png")
    with (tmp_path / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "latitude", "longitude", "cell"])
        table.writerow(["here", 51.83285, 18.08496, "207_72"])
        table.writerow(["south", -33.9, 151.2, "-136_604"])
    words = ["--bands", RGB, "--table", tmp_path / "index.csv", "--folder", "cell"]
    done = convert(tmp_path / "in.tar", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert "any_grid" not in done.stdout
    bands = RGB.split(",")
    patches, _ = packed(
        tmp_path / "out",
        tmp_path / "shards",
        file_bands=bands,
        size_px=16,
        path_pattern="^(?P<place>[^/]+)/",
    )
    assert list(patches) == ["-136_604/Forest/south", "207_72/Forest/here"]
    for name, epsg, place, where in (
        ("207_72/Forest/here", 32634, "207_72", (18.08496, 51.83285)),
        ("-136_604/Forest/south", 32756, "-136_604", (151.2, -33.9)),
    ):
        facts = patches[name][1]
        assert (facts["epsg"], facts["place"]) == (epsg, place)
        corner = facts["transform"].reshape(6)
        centre = to_degrees(epsg, np.array([corner[2] + 80.0]), np.array([corner[5] - 80.0]))
        assert np.concatenate(centre) == pytest.approx(where, abs=1e-6)


def test_arrays_keep_numbers_names_and_nodata(tmp_path):
    numbers = np.random.default_rng(1).integers(0, 9000, (3, 2, 12, 12)).astype(np.uint16)
    numbers[0, :, 0, 0] = 65535
    np.savez(tmp_path / "in.npz", X=numbers, name=np.array(["p", "q", "r"]))
    words = ["--bands", "B08,B11", "--names", "name", "--nodata", "65535"]
    done = convert(tmp_path / "in.npz", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    settings = {"file_bands": ["B08", "B11"], "size_px": 12, "any_grid": True}
    patches, _ = packed(tmp_path / "out", tmp_path / "shards", **settings)
    expected = np.where(numbers == 65535, 0, numbers.clip(1))
    assert [np.array_equal(patches[n][0], e) for n, e in zip("pqr", expected, strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in", "out", "--bands", "B04,B03"], "a has 3 channels, --bands names 2"),
        (["in", "out", "--bands", RGB, "--scale", "1000"], "times 1000; give a --scale"),
        (["in", "out", "--bands", RGB, "--scale", "-1"], "times -1; give a --scale"),
        (["out", "out", "--bands", RGB], "sought .jpg, .jpeg, .png"),
        (["nowhere", "out", "--bands", RGB], "nowhere"),
        (["in.npz", "out", "--bands", RGB, "--array", "Y"], "holds no Y; it holds X"),
        (["in.npz", "out", "--bands", RGB], r"X is \(2, 3\); give \(N, bands, H, W\)"),
        (["in", "out", "--bands", RGB, "--table", "t.csv"], "t.csv has no column name"),
        (["in.npz", "out", "--bands", "B04", "--array", "Z", "--names", "n"], "holds p twice"),
        (["in", "out", "--bands", RGB, "--table", "far.csv"], "at 89.0, 5.0, in no UTM zone"),
        (["in", "out", "--bands", RGB, "--table", "two.csv"], "2 rows for 1 names"),
        (["bad.tar", "out", "--bands", RGB], "which leaves the output folder"),
    ],
)
def test_what_cannot_be_converted_ends_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "in" / "a.png", IMAGE)
    two = {"Z": np.ones((2, 1, 4, 4), np.uint8), "n": np.array(["p", "p"])}
    np.savez(tmp_path / "in.npz", X=np.zeros((2, 3)), **two)
    (tmp_path / "far.csv").write_text("name,latitude,longitude\na,89,5\n")
    (tmp_path / "two.csv").write_text("name,latitude,longitude\na,50,5\na,51,5\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "t.csv").write_text("id\n1\n")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.add(tmp_path / "in" / "a.png", "../a.png")
    done = convert(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("images_to_geotiff: ")
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr
