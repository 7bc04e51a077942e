from html.parser import HTMLParser
from pathlib import Path

from jobs.figures.canvas import Page, canvas


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
