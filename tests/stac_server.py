"""A local HTTP server for tests: byte ranges over a folder, a STAC search, and faults on demand.

Run as a program it serves until it is killed: ``python server.py FOLDER [ITEMS.json]``; it prints
its port.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

# what a fault does to one answer
FAULTS = ("429", "503", "500", "cut", "short", "long", "etag", "slow", "garbage", "whole", "drop")
ASSETS = {"B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1",
          "B06": "rededge2", "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09",
          "B11": "swir16", "B12": "swir22", "SCL": "scl"}  # fmt: skip
PAGE = 2  # items on a page of the search, whatever the client would like


@dataclass
class State:
    """What the server serves and how it misbehaves.

    Attributes:
        root: folder of files, served under /files/.
        items: of the search.
        fault: returns the fault of the next answer, or nothing; called with path and number.
        methods: that the search offers: POST, GET or both.
        versions: added to ETags by path, to change them.
        requests: paths in the order in which they were asked for.
        rate: bytes per second of each answer; 0 for no limit.
        etags: whether answers have an ETag, or the time of the last change instead.
        sent: bytes of files sent.
    """

    root: Path
    items: list[dict] = field(default_factory=list)
    fault: Callable[[str, int], str] = lambda path, number: ""
    methods: tuple[str, ...] = ("POST", "GET")
    versions: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    rate: float = 0.0
    etags: bool = True
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent apart
    state: State

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_error(405)

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        with self.state.lock:
            self.state.requests.append(self.path)
            self.state.headers.append(dict(self.headers))
            number = len(self.state.requests)
        fault = self.state.fault(path, number)
        if fault in ("404", "429", "503", "500"):
            self._send(int(fault), b"busy", {"Retry-After": "0"})
        elif fault == "drop":
            self.close_connection = True
        elif path.startswith("/files/"):
            self._file(self.state.root / path.removeprefix("/files/"), path, fault)
        elif fault == "garbage":
            self._send(200, b"<html>proxy login</html>", {})
        elif path == "/stac":
            self._json(self._root())
        elif path == "/stac/search":
            self._json(self._search(body))
        else:
            self._send(404, b"not here", {})

    def _file(self, path: Path, url: str, fault: str) -> None:
        if not path.is_file():
            self._send(404, b"not here", {})
            return
        stat = path.stat()
        version = f"{stat.st_size}-{stat.st_mtime_ns}-{self.state.versions.get(url, '')}"
        etag = f'"{hashlib.md5(version.encode()).hexdigest()}"'
        if fault == "etag":
            etag = '"another"'
        first, last, code = 0, stat.st_size - 1, 200
        asked = self.headers.get("Range", "")
        if asked and fault != "whole":
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last, code = int(begin), min(int(end or last), last), 206
            if first > last:
                self._send(416, b"", {"Content-Range": f"bytes */{stat.st_size}"})
                return
        length = last - first + 1
        stated = length + {"short": 7, "long": -7}.get(fault, 0)
        self.send_response(code)
        if self.state.etags:
            self.send_header("ETag", etag)
        else:
            self.send_header("Last-Modified", formatdate(stat.st_mtime, usegmt=True))
        self.send_header("Content-Length", str(max(0, stated)))
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{stat.st_size}")
        if fault == "short":
            self.send_header("Connection", "close")
        self.end_headers()
        if fault in ("cut", "short", "long"):
            self.close_connection = True
        self._copy(path, first, length if fault != "cut" else length * 2 // 3, fault)

    def _copy(self, path: Path, first: int, length: int, fault: str) -> None:
        with path.open("rb") as file:
            file.seek(first)
            if not self.state.rate and fault != "slow":
                self.wfile.flush()
                self.connection.sendfile(file, first, length) if length else None
                with self.state.lock:
                    self.state.sent += length
                return
            pause = 0.02 if fault == "slow" else 65536 / self.state.rate
            while length > 0:
                piece = file.read(min(65536, length))
                try:
                    self.wfile.write(piece)
                except OSError:
                    self.close_connection = True
                    return
                length -= len(piece)
                with self.state.lock:
                    self.state.sent += len(piece)
                time.sleep(pause)

    def _root(self) -> dict:
        base = f"http://{self.headers['Host']}/stac"
        links = [{"rel": "self", "href": base}, {"rel": "root", "href": base}]
        links += [
            {"rel": "search", "href": f"{base}/search", "type": "application/geo+json", "method": m}
            for m in self.state.methods
        ]
        core = "https://api.stacspec.org/v1.0.0/"
        return {
            "type": "Catalog", "stac_version": "1.0.0", "id": "local", "description": "for tests",
            "conformsTo": [f"{core}core", f"{core}item-search"], "links": links,
        }  # fmt: skip

    def _search(self, body: bytes) -> dict:
        base = f"http://{self.headers['Host']}"
        asked = json.loads(body) if body else dict(parse_qsl(urlsplit(self.path).query))
        box = asked["bbox"] if body else [float(edge) for edge in asked["bbox"].split(",")]
        begin, end = (asked.get("datetime") or "0000/9999").split("/")
        found = [
            item
            for item in self.state.items
            if begin <= item["properties"]["datetime"] <= end
            and item["bbox"][0] <= box[2]
            and item["bbox"][2] >= box[0]
            and item["bbox"][1] <= box[3]
            and item["bbox"][3] >= box[1]
        ]
        start = int(asked.get("next", 0))
        features = json.loads(json.dumps(found[start : start + PAGE]).replace("{base}", base))
        links = []
        if start + PAGE < len(found):
            following = {**asked, "next": str(start + PAGE)}
            href = f"{base}/stac/search"
            if body:
                links.append({"rel": "next", "href": href, "method": "POST", "body": following})
            else:
                links.append({"rel": "next", "href": f"{href}?{urlencode(following)}"})
        return {"type": "FeatureCollection", "features": features, "links": links}

    def _json(self, data: dict) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = False  # joined when the server is closed
    request_queue_size = 128

    def __init__(self, root: Path, items: list[dict] | None = None) -> None:
        self.state = State(root, items or [])
        handler = type("Bound", (Handler,), {"state": self.state})
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.open: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client: object) -> None:
        self.open.add(request)
        super().process_request(request, client)

    def shutdown_request(self, request: socket.socket) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *args: object) -> None:
        pass  # a client that is killed cuts its connections

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        for request in list(self.open):  # kept alive by clients that are gone
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        self.server_close()


def item_of(
    name: str,
    tile: str,
    day: str,
    rasters: list[str],
    *,
    cloud: float = 5.0,
    orbit: int = 113,
    baseline: str = "0213",
) -> dict:
    """Return the item of a scene near 121 W, 37.5 N; ``{base}`` in it stands for the server."""
    stamp = f"{day[:4]}-{day[4:6]}-{day[6:]}"
    product = f"S2A_MSIL2A_{day}T184921_N{baseline}_R{orbit:03d}_T{tile}_{day}T213000.SAFE"
    links = {band: f"{{base}}/files/{name}/{band}.tif" for band in rasters}
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a",
        "bbox": [-122.0, 36.9, -120.5, 38.0], "geometry": None, "links": [],
        "properties": {
            "datetime": f"{stamp}T18:49:21.024Z", "eo:cloud_cover": cloud,
            "updated": f"{stamp}T23:00:00Z", "earthsearch:boa_offset_applied": True,
            "s2:product_uri": product,
        },
        "assets": {ASSETS[band]: {"href": link, "type": "image/tiff"}
                   for band, link in links.items()}
        | {"visual": {"href": f"{{base}}/files/{name}/TCI.tif"},
           "blue-jp2": {"href": "s3://bucket/B02.jp2"}},
    }  # fmt: skip


if __name__ == "__main__":
    items = json.loads(Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else []
    server = Server(Path(sys.argv[1]), items)
    print(server.server_port, flush=True)  # noqa: T201
    server.serve_forever()
