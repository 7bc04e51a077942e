"""The site is built without a warning, and opening it asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Loaded(HTMLParser):
    """Collects what a browser loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(LOADED.get(tag, ""))
        if address:
            self.addresses.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site as ``make docs`` does."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # the theme's notice of a successor is no warning about these pages
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=quiet, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert [each for each in loaded.addresses if "://" in each or each[:2] == "//"] == []


def test_every_setting_of_every_command_is_in_the_reference(site):
    text = (site / "reference-settings.html").read_text()
    for key in ("optim.learning_rate", "cluster.signal_delay_s", "source.label_table", "run_dir"):
        row = re.search(rf"<code>{re.escape(key)}</code></td>.*?</tr>", text, re.DOTALL)
        assert row, key
        assert len(re.sub(r"<[^>]+>|\s", "", row[0])) > len(key) + 10, row[0]
