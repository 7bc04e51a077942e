"""Search of a STAC API for scenes of an area and time, with reasons why some are not taken."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
from pystac.errors import STACError
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from preprocess.bands import L2A_BANDS, canonical_name
from preprocess.config import EARTH_SEARCH, FetchConfig, parse_interval, read_polygons
from preprocess.fetch.http import FetchError, Http, shown
from preprocess.shards.atomic_io import write_text
from preprocess.sources.l2a import OTHER_DATES, REPEATED, newest_processing
from preprocess.sources.l2a_files import Item, baseline_in, product_of, stated_time
from preprocess.tiling import Flags, TileGrid, in_boxes

SCL = "SCL"
OTHER_TILE = "a tile that was not requested"
OTHER_ORBIT = "an orbit that was not requested"
NO_GROUND = "no ground of the area that this tile owns"
_PAGE = 100  # items per page; about 2 MB from Earth Search
# the two forms of names that packing reads: S2A_10SFH_20190715_0_L2A, and ESA product names
_ID = re.compile(r"S2[A-D]_(?:MSIL2A_[\dT]+_.*?_T)?(?P<tile>\d{1,2}[C-X][A-Z]{2})_[\w.-]+")
_ORBIT = re.compile(r"_N\d{4}_R(\d{3})_")
# errors that pystac raises for JSON that is not STAC, depending on the fault
_NO_STAC = (APIError, ClientTypeError, STACError, KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene found by a search."""

    id: str  # id of its item, and name of its folder
    item: Item  # as returned by the API
    tile: str  # MGRS tile
    acquired: str  # time of acquisition, UTC
    orbit: int  # relative orbit; 0 if unknown
    cloud: float | None  # cloud cover in percent
    baseline: str  # processing baseline, such as 02.13; empty if unknown
    urls: dict[str, str]  # URLs of the rasters, by canonical band or ``SCL``
    reason: str = ""  # reason why it is not taken; empty if it is


@dataclass(frozen=True, slots=True)
class Area:
    """Ground of interest: boxes and polygons in degrees."""

    boxes: list[list[float]]
    polygons: list[list[list[list[float]]]] = field(default_factory=list)

    def bounds(self) -> list[list[float]]:
        """Return boxes that together contain the area."""
        outlines = [np.array(polygon[0])[:, :2] for polygon in self.polygons]
        around = [[*o.min(axis=0).tolist(), *o.max(axis=0).tolist()] for o in outlines]
        return [*self.boxes, *around]

    def squares(self, grid: TileGrid, one_owner: bool) -> Flags:
        """Return whether each 1,200 m square of a tile has its centre in it, (columns, rows)."""
        longitude, latitude = grid.degrees()
        inside = in_boxes(longitude, latitude, self.boxes)
        for polygon in self.polygons:
            within = np.zeros(inside.shape, bool)  # even-odd rule over all rings
            edges = chain.from_iterable(pairwise([*ring, ring[0]]) for ring in polygon)
            for (x1, y1, *_), (x2, y2, *_) in edges:
                if y1 != y2:
                    crosses = (latitude >= min(y1, y2)) & (latitude < max(y1, y2))
                    within ^= crosses & (longitude < x1 + (latitude - y1) / (y2 - y1) * (x2 - x1))
            inside |= within
        return inside & grid.owned() if one_owner else inside


def area_of(config: FetchConfig) -> Area:
    """Return the area in the settings; ``ValueError`` if there is none."""
    area = Area(config.boxes, read_polygons(config.geojson) if config.geojson else [])
    if not area.bounds():
        raise ValueError(
            "what=stac needs an area: area=central_valley, boxes=[[west,south,east,north]] in "
            "degrees, or geojson=FILE"
        )
    return area


def search(http: Http, config: FetchConfig, area: Area) -> list[Scene]:
    """Return all scenes of area and time in order of id, with reasons why some are not taken."""
    url = config.url or EARTH_SEARCH
    try:
        client = Client.open(url, stac_io=_HttpIO(http))
        links = [link.extra_fields.get("method", "GET") for link in client.get_links("search")]
        method = "POST" if "POST" in links else "GET"
        items: dict[str, Item] = {}
        for box, dates in product(area.bounds(), config.dates or [""]):
            found = client.search(
                method=method, limit=_PAGE, collections=[config.collection], bbox=box,
                datetime=dates or None,
            )  # fmt: skip
            ids: set[str] = set()  # ids of this search; others may find the same scenes
            for page in found.pages_as_dicts():
                fresh = {str(item["id"]): item for item in page["features"]}
                if fresh and fresh.keys() <= ids:
                    raise FetchError(f"{shown(url)} sends the same page of its search repeatedly")
                ids |= fresh.keys()
                items |= fresh
        scenes = [_scene(items[key], url) for key in sorted(items)]
    except FetchError:
        raise
    except _NO_STAC as error:
        raise FetchError(
            f"{shown(url)} does not answer as a STAC API does ({type(error).__name__}: {error}); "
            "give the root of one: url=https://..."
        ) from error
    return judge(scenes, config)


class _HttpIO(StacApiIO):
    """Sends pystac-client's requests through our HTTP client with retries."""

    def __init__(self, http: Http) -> None:
        super().__init__()
        self._http = http

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """Send a request of pystac-client; return the text of the response."""
        sent = {"json" if method == "POST" else "params": parameters or {}}
        return self._http.get_json(href, method=method or "GET", headers=headers or {}, **sent)


def judge(scenes: list[Scene], config: FetchConfig) -> list[Scene]:
    """Return the scenes, each with a reason if it is not taken; uses only their items."""
    newest = newest_processing((s.tile, s.acquired, s.baseline) for s in scenes if not s.reason)
    # B01 is the coarsest band, in which packing finds nodata
    wanted = list(dict.fromkeys([*(config.bands or L2A_BANDS), "B01"]))
    judged = []
    for scene in scenes:
        reason = scene.reason or _against(scene, config, wanted)
        # packing makes the same choice among the scenes it finds
        if not reason and scene.baseline != newest[scene.tile, scene.acquired]:
            reason = REPEATED
        urls = {band: scene.urls[band] for band in [*wanted, SCL] if band in scene.urls}
        judged.append(replace(scene, reason=reason, urls=urls))
    return judged


def _against(scene: Scene, config: FetchConfig, wanted: list[str]) -> str:
    day = scene.acquired[:10]
    intervals = map(parse_interval, config.dates)
    if config.dates and not any(first <= day <= last for first, last in intervals):
        return OTHER_DATES
    if config.tiles and scene.tile not in config.tiles:
        return OTHER_TILE
    if config.relative_orbits and scene.orbit not in config.relative_orbits:
        return OTHER_ORBIT if scene.orbit else "its item gives no relative orbit"
    if config.max_cloud < 100 and scene.cloud is None:
        return "its item gives no cloud cover"
    if scene.cloud is not None and scene.cloud > config.max_cloud:
        return f"cloud cover {scene.cloud:g} %, above {config.max_cloud:g} %"
    missing = [band for band in [*wanted, SCL] if band not in scene.urls]
    return f"its item has no GeoTIFF of {', '.join(missing)}" if missing else ""


def _scene(item: Item, api_url: str) -> Scene:
    """Return the scene of an item, with a reason if required properties are missing."""
    name = str(item["id"])
    properties, assets = item.get("properties") or {}, item.get("assets") or {}
    original, acquired = product_of(name, properties), stated_time(properties)
    found, orbit = _ID.fullmatch(name), _ORBIT.search(original)
    number = properties.get("sat:relative_orbit") or (orbit[1] if orbit else 0)
    reason = ""
    if found is None:
        reason = "its id is not the name of a Sentinel-2 L2A scene"
    elif not re.match(r"\d{4}-\d{2}-\d{2}T", acquired):
        reason = "its item gives no time of acquisition"
    own = (str(link["href"]) for link in item.get("links") or [] if link.get("rel") == "self")
    return Scene(
        id=name,
        item=item,
        tile=found["tile"].zfill(5) if found else "",
        acquired=acquired,
        orbit=int(_number(number) or 0),
        cloud=_number(properties.get("eo:cloud_cover")),
        baseline=baseline_in(original, properties),
        urls=dict(_rasters(assets, next(own, api_url))),
        reason=reason,
    )


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _rasters(assets: dict[str, Any], base: str) -> Iterator[tuple[str, str]]:
    for key, asset in assets.items():
        url = urljoin(base, str(asset.get("href", "")))
        if url.startswith("s3://"):
            bucket, _, path = url[5:].partition("/")
            url = f"https://{bucket}.s3.amazonaws.com/{path}"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.path.endswith((".tif", ".tiff")):
            continue
        try:
            yield (SCL if key.upper() == SCL else canonical_name(key)), url
        except ValueError:
            continue  # an asset that is not a band, such as a preview


def write_scenes(path: Path, rows: Iterable[tuple[Scene, int, int]]) -> None:
    """Write ``scenes.csv``: one row per scene, taken or not and why, with patches and bytes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = "id,tile,acquired,relative_orbit,cloud_cover,taken,reason,patches,bytes"
    table.writerow(columns.split(","))
    for s, patches, size in rows:
        cloud, taken = "" if s.cloud is None else f"{s.cloud:g}", "no" if s.reason else "yes"
        known = [s.id, s.tile, s.acquired, s.orbit or "", cloud, taken, s.reason]
        table.writerow([*known, patches, size])
    write_text(path, text.getvalue())
