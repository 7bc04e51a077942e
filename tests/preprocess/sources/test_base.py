"""A walk over folders: everything below the root, or an error that names what cannot be listed."""

import gzip
import logging
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
from make_data import write_geotiff

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.plan import read_quarantine
from preprocess.raster import session
from preprocess.shards.format import PatchError
from preprocess.sources import open_source
from preprocess.sources.base import files_below, patch_groups, read_groups, read_names
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.sources.l2a_files import CogL2AConfig, find_items, find_products, list_files

NOBODY = 65534


@contextmanager
def locked_folder():
    """A folder in which ``locked`` may be listed by its owner alone, seen by somebody else."""
    # outside pytest's own folders, which nobody else may enter
    with tempfile.TemporaryDirectory() as name:
        root, user = Path(name), os.geteuid()
        (root / "open").mkdir()
        (root / "open" / "a.tif").touch()
        (root / "locked").mkdir()
        root.chmod(0o755)
        (root / "locked").chmod(0)
        with session():
            pass  # PROJ opens its database once; where it is installed, nobody else may look
        try:
            if user == 0:  # who may list everything
                os.seteuid(NOBODY)
            yield root
        finally:
            os.seteuid(user)
            (root / "locked").chmod(0o755)


def test_every_file_is_found_with_its_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for path in ("x.tif", "a/y.tif", "a/b/z.tif"):
        (tmp_path / path).touch()
    assert sorted(files_below(tmp_path)) == [(".", ["x.tif"]), ("a", ["y.tif"]), ("a/b", ["z.tif"])]


@pytest.mark.parametrize(
    "look",
    [
        lambda root: list(files_below(root)),
        lambda root: list_files(root),
        lambda root: list(open_source(GeotiffConfig(root=str(root), bands=["B02"])).discover()),
        lambda root: list(open_source(CogL2AConfig(root=str(root))).discover()),
    ],
)
def test_a_folder_that_may_not_be_listed_is_an_error_and_not_empty(look):
    with locked_folder() as root, pytest.raises(PermissionError, match="locked"):
        look(root)


def geotiffs(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_geotiff(root / path, np.full((1, 8, 8), 900, np.uint16))


def found_in(root):
    config = GeotiffConfig(root=str(root), file_bands=["B02"], size_px=8, boa_offset=0)
    return open_source(config)


def test_links_to_folders_are_followed_once_and_loops_are_harmless(tmp_path, caplog):
    geotiffs(tmp_path, "d/A/a.tif", "elsewhere/b.tif", "elsewhere/deep/c.tif")
    for link, target in {
        "B": "../elsewhere", "C": "A", "A/up": "../..", "loop": ".", "D": "../elsewhere/deep",
    }.items():  # fmt: skip
        (tmp_path / "d" / link).symlink_to(target)
    source = found_in(tmp_path / "d")
    with caplog.at_level(logging.INFO):
        ids = [ref.id for ref in source.discover()]
    assert ids == ["A/a", "B/b", "B/deep/c"]
    assert all(source.read(ref, source.layout()).id == ref.id for ref in source.discover())
    assert "4 folders seen before" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_folder_that_is_mounted_twice_is_read_once(tmp_path):
    geotiffs(tmp_path, "d/A/a.tif")
    (tmp_path / "d" / "B").mkdir()
    walk = (
        "import sys; from pathlib import Path; from preprocess.sources.base import files_below;"
        "print([name for _, names in files_below(Path(sys.argv[1])) for name in names])"
    )
    mount = 'mount --bind "$1/A" "$1/B" && ls "$1/B" && exec "$2" -c "$3" "$1"'
    words = ["unshare", "-m", "bash", "-c", mount, "-", str(tmp_path / "d"), sys.executable, walk]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and "permitted" in done.stderr:
        pytest.skip(f"this container may not mount: {done.stderr.strip()}")
    assert done.stdout == "a.tif\n['a.tif']\n", done.stderr


def test_hidden_and_system_names_are_passed_over_and_counted(tmp_path, caplog):
    geotiffs(tmp_path, "A/a.tif", "A/.ipynb_checkpoints/a.tif", "A/._a.tif", ".Trash-0/b.tif")
    geotiffs(tmp_path, "__MACOSX/A/a.tif", "lost+found/c.tif")
    source = found_in(tmp_path)
    with caplog.at_level(logging.INFO):
        assert [ref.id for ref in source.discover()] == ["A/a"]
    assert source.layout().label_sets[0].classes == ("A",)
    assert "passed over 5 hidden or system entries" in caplog.text


def test_a_name_that_is_no_text_is_rejected_and_the_others_are_packed(tmp_path):
    geotiffs(tmp_path, "tifs/A/a.tif", "tifs/A/b.tif", "tifs/A/c.tif")
    raw = os.fsencode(tmp_path / "tifs" / "A")
    (tmp_path / "tifs" / "A" / "c.tif").rename(os.fsdecode(raw + b"/caf\xe9.tif"))
    source = found_in(tmp_path / "tifs").config
    config = PackConfig(source=source, output=str(tmp_path / "s"), max_rejected=0.5)
    assert pack(config, progress=False).rows == 2
    (rejected,) = read_quarantine(tmp_path / "s" / "rejected.jsonl")
    assert rejected.id == "A/caf\\xe9"
    assert rejected.reason == "its name is not UTF-8; rename it"


def test_products_behind_links_are_found_and_loops_are_harmless(tmp_path):
    name = "S2A_MSIL2A_20190715T184921_N0213_R113_T10SFH_20190715T184921.SAFE"
    (tmp_path / "archive" / name / "GRANULE").mkdir(parents=True)
    (tmp_path / "root" / "x").mkdir(parents=True)
    (tmp_path / "root" / "x" / "up").symlink_to("..")
    (tmp_path / "root" / "linked").symlink_to("../archive")
    assert find_products(tmp_path / "root") == [f"linked/{name}"]
    scene = tmp_path / "scenes" / "S2A_29RKH_20200219_0_L2A"
    scene.mkdir(parents=True)
    (scene / "B02.tif").touch()
    (tmp_path / "cogs").mkdir()
    (tmp_path / "cogs" / scene.name).symlink_to(scene)
    assert find_items(tmp_path / "cogs") == [scene.name]


def test_bands_of_a_patch_whose_tags_claim_several_offsets_are_refused(tmp_path):
    paths = {
        band: write_geotiff(tmp_path / f"{band}.tif", np.ones((1, 120, 120), "uint16"))
        for band in ("B02", "B03")
    }
    groups = patch_groups(paths)
    with session():
        assert {n: p.shape for n, p in read_groups(paths, groups)[0].items()} == {
            "b10": (2, 120, 120)
        }
    for band, offset in (("B03", -0.1), ("B02", 0.0)):
        with rasterio.open(paths[band], "r+") as dataset:
            dataset.scales, dataset.offsets = (0.0001,), (offset,)
        if band == "B03":
            with session():
                assert read_groups(paths, groups)[2] == -1000
    with session(), pytest.raises(PatchError, match=r"B03\.tif: its tags .* -1000, .* bands 0"):
        read_groups(paths, groups)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfa\nb,radar\n", b'"a"\n"b","radar"\n', b"a.tif\r\n\r\n b ,radar\r\n"],
)
def test_a_list_gives_its_names_however_a_program_writes_it(tmp_path, content):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    assert read_names(str(path)) == {"a", "b"}


@pytest.mark.parametrize("name", ["list.csv", "list.csv.gz"])
def test_a_spoiled_list_is_one_error_that_names_it(tmp_path, name):
    content = bytearray(gzip.compress(b"a\nb\n" * 1000) if name.endswith("gz") else b'a\n"b\n')
    content[15:16] = b"\xff" if name.endswith("gz") else b""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        read_names(str(tmp_path / name))
