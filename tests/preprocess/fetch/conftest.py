"""A local server with small scenes for the tests of fetching."""

import copy

import pytest
from make_scenes import BOX, scene
from stac_server import Server

from preprocess.config import FetchConfig


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Return a folder of four scenes, and their items."""
    root = tmp_path_factory.mktemp("served")
    return root, [
        scene(root, day="20190115", cloud=3),
        scene(root, day="20190715", cloud=10),
        scene(root, day="20190720", cloud=60),
        scene(root, tile="10SGH", day="20190715"),
    ]


@pytest.fixture
def server(scenes):
    root, items = scenes
    with Server(root, copy.deepcopy(items)) as running:
        yield running


@pytest.fixture
def settings(server, tmp_path):
    """Return a function that makes the settings of a fetch into ``tmp_path / name``."""

    def make(name: str = "out", **changes) -> FetchConfig:
        base = {
            "url": f"{server.url}/stac", "boxes": [BOX], "dates": ["2019-01-01/2019-12-31"],
            "max_cloud": 20.0, "streams": 4,
        }  # fmt: skip
        return FetchConfig(output=str(tmp_path / name), **{**base, **changes})

    return make


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Let retries wait milliseconds."""
    monkeypatch.setattr("preprocess.fetch.http.BACKOFF_S", 0.001)
