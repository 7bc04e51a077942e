import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from jobs.figures.canvas import Page, canvas

_VOID = {"meta", "link", "img"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts.extend(value or "" for _, value in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class _Nesting(HTMLParser):
    """Fails at a tag that is not closed in order, and at an address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        loaded = dict(attrs).get("href" if tag == "link" else "src")
        assert loaded is None or loaded.startswith("data:"), loaded
        assert tag not in ("script", "iframe", "object")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def everything(folder: Path) -> Path:
    """Write a page with one part of each kind."""
    with canvas(folder / "figure.png", 9, 3) as figure:
        figure.subplots().plot([1, 2])
    page = Page("A <page>").lead("It works & more.").heading("Part").heading("Smaller", 3)
    page.text("one", "two").bullets("a", "b").bullets().links(
        {"b c": "b c.csv", "d": "http://d/?e=f"}
    )
    page.table(["x", "y"], [[1, "<2>"]]).table(["x"], [["a long sentence"]], wraps=True)
    return (
        page.command("do it")
        .folded("all <settings>", "a: 1\nb: 2")
        .picture(folder / "figure.png", "a")
        .write(folder / "page.html")
    )


def test_a_page_is_well_formed_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    text = everything(tmp_path).read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    checked = _Nesting()
    checked.feed(text)
    assert checked.open == []
    assert "url(" not in text
    assert "@import" not in text
    assert 'href="b%20c.csv"' in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])  # a phone, a screen
def test_a_browser_draws_a_page_as_wide_as_its_window(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    page = everything(tmp_path)
    # its own script writes what the browser has laid out into the page that it prints
    script = "<script>document.title = document.documentElement.scrollWidth</script>"
    (tmp_path / "measured.html").write_text(page.read_text("utf-8") + script)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    picture = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, timeout=600)
    assert matplotlib.image.imread(picture)[..., :3].std() > 0.03
    measured = [*command, "--dump-dom", (tmp_path / "measured.html").as_uri()]
    said = subprocess.run(measured, check=True, timeout=600, capture_output=True, text=True)
    shown = int(said.stdout.partition("<title>")[2].partition("</title>")[0])
    assert shown <= max(width, 500)  # headless chromium has no narrower window


def _read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text("utf-8"))
    return reader


def test_text_that_looks_like_markup_stays_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> & 'quotes'"
    page = Page(hostile).heading(hostile).text(hostile).command(hostile)
    read = _read(page.table([hostile], [[hostile]]).write(tmp_path / "page.html"))
    assert "script" not in read.tags
    assert read.texts.count(hostile) == 7  # title twice, heading, text, command, header and cell


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    with canvas(tmp_path / "figure.png", 2, 2) as figure:
        figure.subplots()
    page = Page("report").picture(tmp_path / "figure.png", "a figure").write(tmp_path / "page.html")
    (tmp_path / "figure.png").unlink()
    sources = [text for text in _read(page).texts if text.startswith("data:image/png;base64,")]
    assert len(sources) == 1
    assert "http" not in page.read_text("utf-8")
