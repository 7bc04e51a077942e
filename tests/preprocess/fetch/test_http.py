"""Requests: what is retried, what is logged, how fast, and how a transfer ends."""

import os
import threading
import time

import pytest
from stac_server import Server

from preprocess.fetch.http import (
    FetchError,
    Http,
    PartialFile,
    RemoteChangedError,
    Span,
    StoppedError,
    chunks,
    shown,
)

SIZE = 300_000


@pytest.fixture
def served(tmp_path):
    (tmp_path / "served").mkdir()
    data = bytes(range(256)) * (SIZE // 256 + 1)
    (tmp_path / "served" / "file.bin").write_bytes(data[:SIZE])
    with Server(tmp_path / "served") as server:
        yield server, f"{server.url}/files/file.bin", data[:SIZE]


def fetch_file(http, url, path, size=50_000) -> None:
    remote, _ = http.open(url)
    partial = PartialFile(path, remote)
    for span in partial.missing(chunks(remote.size, size)):
        partial.fetch(http, span, lambda count: None)
    partial.finish()


def test_a_file_arrives_as_it_is_and_nothing_else_stays(served, tmp_path):
    _, url, data = served
    fetch_file(Http(), url, tmp_path / "out" / "file.bin")
    assert (tmp_path / "out" / "file.bin").read_bytes() == data
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file.bin"]


def test_only_spans_that_the_journal_vouches_for_are_kept(served, tmp_path):
    _, url, data = served
    http, path = Http(), tmp_path / "file.bin"
    remote, _ = http.open(url)
    spans = chunks(remote.size, 50_000)
    partial = PartialFile(path, remote)
    assert partial.missing(spans) == spans
    for span in (spans[0], spans[2], spans[5]):
        partial.fetch(http, span, lambda count: None)
    with partial.data.open("r+b") as file:
        file.seek(spans[2].target + 7)
        file.write(b"x")  # a page that never reached the disk
    with partial.journal.open("ab") as journal:
        journal.write(b'{"target": 50000, "leng')  # killed while it wrote
    again = PartialFile(path, remote)
    assert again.missing(spans) == [spans[1], spans[2], spans[3], spans[4]]
    for span in again.missing(spans):
        again.fetch(http, span, lambda count: None)
    assert PartialFile(path, remote).missing(spans) == []
    again.finish()
    assert path.read_bytes() == data


def test_a_file_that_ends_before_a_span_holds_nothing_of_it(served, tmp_path):
    _, url, _ = served
    remote, _ = Http().open(url)
    partial = PartialFile(tmp_path / "file.bin", remote, prefix=b"header")
    spans = [Span(0, 100, 6)]
    assert partial.missing(spans) == spans
    assert PartialFile(tmp_path / "file.bin", remote, prefix=b"header").missing(spans) == spans


def test_another_version_starts_anew(served, tmp_path):
    server, url, _ = served
    http, path = Http(), tmp_path / "file.bin"
    remote, _ = http.open(url)
    partial = PartialFile(path, remote)
    spans = chunks(remote.size, 50_000)
    partial.missing(spans)
    partial.fetch(http, spans[0], lambda count: None)
    server.state.versions["/files/file.bin"] = "new"
    with pytest.raises(RemoteChangedError, match="changed on the server"):
        partial.fetch(http, spans[1], lambda count: None)
    renewed, _ = http.open(url)
    assert PartialFile(path, renewed).missing(spans) == spans


def test_without_etags_the_time_of_the_last_change_tells_versions_apart(served, tmp_path):
    server, url, data = served
    server.state.etags = False
    http, path, file = Http(), tmp_path / "file.bin", server.state.root / "file.bin"
    old, _ = http.open(url)
    partial, spans = PartialFile(path, old), chunks(SIZE, 50_000)
    partial.missing(spans)
    partial.fetch(http, spans[0], lambda count: None)
    file.write_bytes(data[::-1])  # as long as the old one
    os.utime(file, (0, 0))
    with pytest.raises(RemoteChangedError, match="changed on the server"):
        partial.fetch(http, spans[1], lambda count: None)
    fetch_file(http, url, path)
    assert path.read_bytes() == data[::-1]


def test_a_cut_range_goes_on_where_it_was_cut(served, monkeypatch):
    server, url, data = served
    monkeypatch.setattr("preprocess.fetch.http.PIECE_BYTES", 1000)
    http = Http()
    remote, _ = http.open(url)
    server.state.fault = lambda path, number: "cut" if number <= 6 else ""
    server.state.sent = 0
    assert http.read(remote, 0, SIZE - SIZE % 3) == data[: SIZE - SIZE % 3]
    assert server.state.sent < SIZE * 1.2


@pytest.mark.parametrize("kind", ["whole", "etag"])
def test_bytes_of_another_range_or_version_are_not_taken(served, kind):
    server, url, _ = served
    http = Http(retries=1)
    remote, _ = http.open(url)
    server.state.fault = lambda path, number: kind
    with pytest.raises(FetchError):
        http.read(remote, 1000, 1000)


def test_the_wait_that_a_server_asks_for_is_kept(served):
    server, url, _ = served
    times = []

    def busy(path, number):
        times.append(time.monotonic())
        return "later" if number == 1 else ""

    handler = server.RequestHandlerClass
    original = handler._file

    def answer(self, path, where, fault):
        if fault == "later":
            self._send(429, b"", {"Retry-After": "1"})
        else:
            original(self, path, where, fault)

    handler._file = answer
    server.state.fault = busy
    Http().open(url)
    assert times[1] - times[0] >= 1.0


def test_all_streams_together_keep_the_rate(served):
    _, url, _ = served
    http = Http(streams=4, max_bytes_per_s=1e6)
    remote, _ = http.open(url)
    started = time.monotonic()
    threads = [threading.Thread(target=http.read, args=(remote, 0, SIZE)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 4 * SIZE / (time.monotonic() - started) < 1.4e6


def test_a_transfer_that_is_stopped_ends_at_its_next_piece(served, monkeypatch):
    monkeypatch.setattr("preprocess.fetch.http.PIECE_BYTES", 10_000)
    server, url, _ = served
    server.state.rate = 50_000.0
    http = Http()
    remote, _ = http.open(url)
    threading.Timer(0.2, http.stop.set).start()
    started = time.monotonic()
    with pytest.raises(StoppedError):
        http.read(remote, 0, SIZE)
    assert time.monotonic() - started < 4  # all of it takes six seconds


def test_neither_user_nor_password_nor_query_is_shown(served, caplog):
    secret = "https://me:pass@host.example:8443/path/B02.tif?X-Amz-Signature=abc#part"
    assert shown(secret) == "https://host.example:8443/path/B02.tif"
    server, url, _ = served
    server.state.fault = lambda path, number: "503"
    with caplog.at_level("DEBUG", logger="preprocess"), pytest.raises(FetchError) as caught:
        Http(retries=2).open(f"{url}?token=abc")
    assert "abc" not in caplog.text + str(caught.value)
    assert "HTTP 503" in caplog.text


def test_a_proxy_of_the_environment_is_used(served, monkeypatch):
    server, _, _ = served
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(FetchError, match="HTTP 404"):
        Http().open("http://elsewhere.invalid/file.bin")
    assert server.state.requests[-1] == "http://elsewhere.invalid/file.bin"
