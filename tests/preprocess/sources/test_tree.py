"""A walk over folders: everything below the root, or an error that names what cannot be listed."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from preprocess.sources import open_source
from preprocess.sources.base import files_below
from preprocess.sources.geotiff import GeotiffConfig
from preprocess.sources.safe import list_files
from preprocess.sources.stac_cog import CogL2AConfig

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
