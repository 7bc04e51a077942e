"""Settings of fetching, packing, verifying, and shared by sources; checked on construction.

Paths may be empty while a configuration is still being composed; the commands require them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import date
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

from preprocess.bands import canonical_names


class OnError(Enum):
    """What happens to a bad patch: ``quarantine`` skips and lists it, ``stop`` ends packing."""

    quarantine = "quarantine"
    stop = "stop"


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds."""
    require_all((condition, message))


def require_all(*checks: tuple[bool, str]) -> None:
    """Raise one ``ValueError`` with the messages of all conditions that do not hold."""
    problems = [message for condition, message in checks if not condition]
    if problems:
        raise ValueError("; ".join(problems))


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """What every source has.

    Attributes:
        kind: which reader reads it; a key of ``preprocess.sources.SOURCES``.
        name: name in the manifest, to which statistics belong; empty takes the kind.
        root: folder with the rasters.
        bands: bands to store, in this order; empty stores all that the source delivers.
    """

    kind: str = ""
    name: str = ""
    root: str = ""
    bands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # statistics belong to the name: two archives of one kind need two names
        self.name = self.name or self.kind
        self.bands = canonical_names(self.bands)


@dataclass(kw_only=True, slots=True)
class PackConfig:
    """One source to be packed into one folder of shards.

    Attributes:
        source: what is packed.
        output: folder for shards and manifest.
        shard_size_mib: pixel bytes of a full shard before compression, in MiB; a shard holds at
            least one patch.
        compression: of the pixels: none, gzip, or with the extra ``compression`` zstd. Sentinel-2
            shrinks by a third at the price of slower reading.
        limit: pack only the first patches, in order of their ids; 0 packs all.
        on_error: quarantine or stop.
        max_rejected: share of the patches that may be rejected before packing gives up.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    output: str = ""
    shard_size_mib: float = 1024.0
    compression: str = "none"
    limit: int = 0
    on_error: OnError = OnError.quarantine
    max_rejected: float = 0.01

    def __post_init__(self) -> None:
        require_all(
            (self.shard_size_mib > 0, f"shard_size_mib is {self.shard_size_mib}; give MiB above 0"),
            (self.limit >= 0, f"limit is {self.limit}; give 0 for all, or a number of patches"),
            (
                0 <= self.max_rejected <= 1,
                f"max_rejected is {self.max_rejected}; give a share from 0 to 1",
            ),
        )


@dataclass(kw_only=True, slots=True)
class VerifyConfig:
    """A check of packed shards.

    Attributes:
        shards: folder with shards and manifest.
        quick: check presence, sizes and structure only; no checksum, no pixel.
        repair: pack faulty shards again from their source.
        root: where the rasters are now, if they have moved since packing; for ``repair``.
        threads: shards verified in parallel; 0 takes all cores of this process.
    """

    shards: str = ""
    quick: bool = False
    repair: bool = False
    root: str = ""
    threads: int = 0

    def __post_init__(self) -> None:
        require_all(
            (self.threads >= 0, f"threads is {self.threads}; give 0 for all cores, or a number"),
            (
                self.repair or not self.root,
                f"root is {self.root!r}, but only repair reads rasters; add repair=true, or leave "
                "root out",
            ),
            (
                not (self.quick and self.threads > 0),
                f"threads is {self.threads}, but quick=true reads nothing that threads would "
                "share; leave one of them out",
            ),
        )


# west, south, east, north; not list[float]: the command line passes integral degrees as int
Box = list[Any]


@dataclass(kw_only=True, slots=True)
class SelectConfig:
    """Which products and which ground are taken at all.

    Attributes:
        boxes: areas of interest; a patch belongs to one if its centre does. Empty takes all.
        date_from: first day of acquisition, such as 2019-07-01; empty sets no bound.
        date_to: last day of acquisition, itself included.
        months: months of acquisition from 1 to 12; empty takes all.
        max_scene_cloud: greatest cloud cover of a whole product in percent; a coarse filter.
        min_dates: drop cells that were seen on fewer days; 2 leaves seasonal pairs only.
        one_owner: take ground where tiles or UTM zones overlap from one tile only.
        exclude_lists: files with ids or cells to leave out, one per line, compared whole.
        exclude_boxes: areas that no patch may touch.
    """

    boxes: list[Box] = field(default_factory=list)
    date_from: str = ""
    date_to: str = ""
    months: list[int] = field(default_factory=list)
    max_scene_cloud: float = 100.0
    # days, not products: one day may have two processings, or two products split along the track
    min_dates: int = 1
    one_owner: bool = True
    exclude_lists: list[str] = field(default_factory=list)
    exclude_boxes: list[Box] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_boxes("source.select.boxes", self.boxes)
        check_boxes("source.select.exclude_boxes", self.exclude_boxes)
        self.date_from = _day("source.select.date_from", self.date_from)
        self.date_to = _day("source.select.date_to", self.date_to)
        require(
            not (self.date_to and self.date_from > self.date_to),
            f"source.select.date_from {self.date_from} is after date_to {self.date_to}",
        )
        odd = [month for month in self.months if not 1 <= month <= 12]
        require_all(
            (not odd, f"source.select.months names {odd}; months count from 1 to 12"),
            (
                0 <= self.max_scene_cloud <= 100,
                f"source.select.max_scene_cloud is {self.max_scene_cloud}; give 0 to 100 percent",
            ),
            (self.min_dates >= 1, f"source.select.min_dates is {self.min_dates}; give 1 or more"),
        )


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Which patches are good enough; shares of a patch's ground from 0 to 1.

    Cloud, shadow and snow are what the scene classification map (SCL) says; a product without one
    is judged by its nodata alone.

    Attributes:
        min_valid: least share that is not nodata.
        max_cloud: most of medium and high cloud probability and thin cirrus (SCL 8, 9, 10).
        max_shadow: most of cloud shadow (SCL 3).
        max_snow: most of snow or ice (SCL 11).
    """

    # no nodata at all: a swath edge would make it too easy to match two views
    min_valid: float = 1.0
    max_cloud: float = 0.05
    max_shadow: float = 0.05
    max_snow: float = 0.05

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in FilterConfig.__dataclass_fields__}
        require_all(
            *(
                (0 <= value <= 1, f"source.filter.{name} is {value}; give a share from 0 to 1")
                for name, value in values.items()
            )
        )


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Splits by geography: whole blocks of ground go to one split, on all dates.

    Attributes:
        block_km: side of a block; 0 leaves all patches without a split.
        buffer_km: every patch keeps this far from ground of another split, else it is dropped.
        validation: share of the blocks for validation.
        test: share of the blocks for test; the rest is train.
        seed: another seed gives another assignment of the blocks.
    """

    block_km: float = 0.0
    buffer_km: float = 1.2
    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        # in a narrower block, no patch could keep the buffer on both sides
        least = 2 * self.buffer_km + 2.4
        shares = (self.validation, self.test)
        defaults = SplitConfig.__dataclass_fields__
        idle = [
            f"source.split.{name} is {getattr(self, name)}"
            for name in ("buffer_km", "validation", "test", "seed")
            if self.block_km == 0 and getattr(self, name) != defaults[name].default
        ]
        require_all(
            (self.block_km >= 0, f"source.split.block_km is {self.block_km}; give 0 or kilometres"),
            (self.buffer_km >= 0, f"source.split.buffer_km is {self.buffer_km}; give 0 or more"),
            (
                self.block_km <= 0 or self.block_km > least,
                f"source.split.block_km is {self.block_km}, but a buffer of {self.buffer_km} km "
                f"leaves no ground in blocks up to {least:g} km; give larger blocks or a smaller "
                "buffer",
            ),
            (
                min(shares) >= 0 and sum(shares) < 1,
                f"source.split.validation and test are {shares}; give shares with a sum below 1",
            ),
            (
                not idle,
                f"{' and '.join(idle)}, but nothing is split without blocks; give their side, such "
                "as source.split.block_km=10",
            ),
        )


@dataclass(kw_only=True, slots=True)
class ProductsConfig(SourceConfig):
    """What all sources of whole products have.

    Attributes:
        boa_offset: what must be added to the digital numbers, -1000 or 0. Leave it out where the
            metadata or the product name gives it; contradicting them is an error.
        override_offset: use ``boa_offset`` even if metadata or names contradict it.
        select: which products and ground.
        filter: which patches.
        split: blocks of ground.
    """

    boa_offset: int | None = None
    override_offset: bool = False
    select: SelectConfig = field(default_factory=SelectConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        check_offsets(self.override_offset, self.boa_offset)


def check_offsets(override: bool, boa: int | None, reprocessed: int | None = None) -> None:
    """Reject offsets that no product has, and an override without an offset."""
    given = {"source.boa_offset": boa, "source.reprocessed_offset": reprocessed}
    odd = [f"{key} is {value}" for key, value in given.items() if value not in (None, 0, -1000)]
    require_all(
        (not odd, f"{' and '.join(odd)}; give -1000 or 0, which is added to the numbers"),
        (
            not override or boa is not None,
            "source.override_offset is true, but source.boa_offset is not set; give the offset too",
        ),
    )


def check_boxes(key: str, boxes: list[Box]) -> None:
    """Reject boxes that are not areas in degrees.

    Raises:
        ValueError: a box is not [west, south, east, north].
    """
    for box in boxes:
        numbers = len(box) == 4 and all(isinstance(edge, int | float) for edge in box)
        require(
            numbers and -180 <= box[0] < box[2] <= 180 and -90 <= box[1] < box[3] <= 90,
            f"{key} holds {box}; give [west, south, east, north] in degrees",
        )


def _day(key: str, day: str) -> str:
    """Return a day as 2019-07-01; empty stays empty."""
    try:
        # Python also reads 20190701 and 2019-W27-1, which do not compare with days as text
        return day and date.fromisoformat(day).isoformat()
    except ValueError as error:
        raise ValueError(f"{key} is {day!r}; give a day such as 2019-07-01") from error


EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"


class FetchTarget(StrEnum):
    """A published archive, or the scenes found by a STAC search."""

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

    what: FetchTarget = FetchTarget.stac
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
        self.dates = ["/".join(parse_interval(interval)) for interval in self.dates]
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
    """Return the first and last day of an interval, as 2019-07-01.

    Raises:
        ValueError: the text is not an interval.
    """
    first, slash, last = interval.partition("/")
    try:
        days = date.fromisoformat(first), date.fromisoformat(last if slash else first)
        require(days[0] <= days[1], "ends before it begins")
    except ValueError as error:
        raise ValueError(
            f"dates holds {interval!r}; give days or intervals such as 2019-01-01/2019-03-31"
        ) from error
    return days[0].isoformat(), days[1].isoformat()


def read_polygons(path: str) -> list[list[list[list[float]]]]:
    """Return the polygons of a GeoJSON file, each a list of rings of [longitude, latitude].

    Raises:
        ValueError: the file is missing, unreadable, or contains no polygon.
    """
    try:
        polygons = list(_polygons_in(json.loads(Path(path).read_bytes())))
        rings = [ring for polygon in polygons for ring in polygon]
        inside = [-180 <= p[0] <= 180 and -90 <= p[1] <= 90 for ring in rings for p in ring]
        whole = all(inside) and all(len(ring) >= 4 for ring in rings)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"geojson: {path} cannot be read as GeoJSON ({error})") from error
    require_all(
        (bool(rings), f"geojson: {path} holds no polygon"),
        (
            whole,
            f"geojson: {path} has a ring that is no polygon in degrees (longitude, latitude)",
        ),
    )
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
