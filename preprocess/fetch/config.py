"""The settings of fetching; values are checked when made."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any

from preprocess.bands import canonical_names
from preprocess.config import Box, check_boxes, require

EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"


class What(StrEnum):
    """What is fetched: one of the published archives, or scenes that a STAC search finds."""

    stac = "stac"
    bigearthnet_v1 = "bigearthnet_v1"
    bigearthnet_v2 = "bigearthnet_v2"
    eurosat = "eurosat"


@dataclass(kw_only=True, slots=True)
class FetchConfig:
    """What is fetched, from where, and how fast.

    Attributes:
        what: an archive, or ``stac`` for scenes of an area and time.
        output: folder to fill; a second start goes on where the first one ended.
        url: of the STAC API, or of a mirror that holds an archive's files under their names; empty
            takes the official one.
        collection: of the STAC API.
        boxes: areas of interest, [west, south, east, north] in degrees; a patch belongs to one if
            its centre does.
        geojson: file with polygons of interest in degrees, in addition to the boxes.
        dates: days or intervals of days, both ends included: 2019-01-01/2019-03-31.
        max_cloud: most cloud cover of a scene in percent.
        tiles: MGRS tiles such as 10SFH; empty takes all of the area.
        relative_orbits: numbers from 1 to 143; empty takes all.
        bands: to fetch besides B01 and the scene classification, which tell where pixels are good;
            empty takes all twelve.
        one_owner: fetch ground where tiles overlap from one tile only, as packing does by default.
        whole_scenes: fetch every pixel of a scene, and its overviews.
        max_gb: refuse to fetch more than this many gigabytes (10^9 bytes).
        streams: files or ranges that are read at the same time.
        max_mb_per_s: all streams together; 0 sets no limit.
        retries: further attempts after a failure.
        keep_archives: keep an archive after it is unpacked.
    """

    what: What = What.stac
    output: str = ""
    url: str = ""
    collection: str = "sentinel-2-l2a"
    boxes: list[Box] = field(default_factory=list)
    geojson: str = ""
    dates: list[str] = field(default_factory=list)
    max_cloud: float = 100.0
    tiles: list[str] = field(default_factory=list)
    relative_orbits: list[int] = field(default_factory=list)
    bands: list[str] = field(default_factory=list)
    one_owner: bool = True
    whole_scenes: bool = False
    max_gb: float = 200.0
    streams: int = 8
    max_mb_per_s: float = 0.0
    retries: int = 8
    keep_archives: bool = False

    def __post_init__(self) -> None:
        self.bands = canonical_names(self.bands)
        check_boxes("boxes", self.boxes)
        for interval in self.dates:
            parse_interval(interval)
        odd = [name for name in self.tiles if not re.fullmatch(r"\d{2}[C-X][A-Z]{2}", name)]
        require(not odd, f"tiles names {odd}; give MGRS tiles such as 10SFH")
        odd_orbits = [number for number in self.relative_orbits if not 1 <= number <= 143]
        require(not odd_orbits, f"relative_orbits names {odd_orbits}; they count from 1 to 143")
        require(
            0 <= self.max_cloud <= 100, f"max_cloud is {self.max_cloud:g}; give 0 to 100 percent"
        )
        require(self.max_gb > 0, f"max_gb is {self.max_gb:g}; give gigabytes above 0")
        require(1 <= self.streams <= 64, f"streams is {self.streams}; give 1 to 64")
        require(
            self.max_mb_per_s >= 0, f"max_mb_per_s is {self.max_mb_per_s:g}; give 0 or megabytes"
        )
        require(0 <= self.retries <= 20, f"retries is {self.retries}; give 0 to 20")


def parse_interval(interval: str) -> tuple[str, str]:
    """Return first and last day of an interval.

    Raises:
        ValueError: it is none.
    """
    first, _, last = interval.partition("/")
    last = last or first
    try:
        require(date.fromisoformat(first) <= date.fromisoformat(last), "ends before it begins")
    except ValueError as error:
        raise ValueError(
            f"dates holds {interval!r}; give days or intervals such as 2019-01-01/2019-03-31"
        ) from error
    return first, last


def read_polygons(path: str) -> list[list[list[list[float]]]]:
    """Return the polygons of a GeoJSON file, each a list of rings of [longitude, latitude].

    Raises:
        ValueError: the file is missing, unreadable, or holds none.
    """
    try:
        polygons = list(_polygons_in(json.loads(Path(path).read_bytes())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"geojson: {path} cannot be read as GeoJSON ({error})") from error
    for polygon in polygons:
        for ring in polygon:
            inside = all(-180 <= p[0] <= 180 and -90 <= p[1] <= 90 for p in ring)
            require(
                len(ring) >= 4 and inside,
                f"geojson: {path} has a ring that is no polygon in degrees (longitude, latitude)",
            )
    require(bool(polygons), f"geojson: {path} holds no polygon")
    return polygons


def _polygons_in(node: dict[str, Any]) -> list[Any]:
    kind = node["type"]
    if kind == "FeatureCollection":
        return [found for feature in node["features"] for found in _polygons_in(feature)]
    if kind == "Feature":
        return _polygons_in(node["geometry"])
    if kind == "GeometryCollection":
        return [found for part in node["geometries"] for found in _polygons_in(part)]
    coordinates = node["coordinates"]
    return list({"Polygon": [coordinates], "MultiPolygon": coordinates}[kind])
