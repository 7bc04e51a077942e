"""The settings of packing: one dataclass a source, one a command; values are checked when made.

Paths may be empty while a configuration is still being composed; ``pack`` and ``verify`` ask for
them. An empty list of bands means every band that the source delivers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from enum import Enum, StrEnum
from typing import Any

from preprocess.bands import canonical_name, canonical_names


class OnError(Enum):
    """What a bad input does: ``quarantine`` leaves it out and lists it, ``stop`` ends packing."""

    quarantine = "quarantine"
    stop = "stop"


class SimulatedForm(StrEnum):
    """What is written: a BigEarthNet v1 ``tree`` of patches, or L2A products (``safe``)."""

    tree = "tree"
    safe = "safe"


class Values(StrEnum):
    """What pixels count: ``digital_numbers`` are reflectance x 10000, as ESA delivers them."""

    digital_numbers = "digital_numbers"
    reflectance = "reflectance"


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


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
class BigEarthNetV1Config(SourceConfig):
    """BigEarthNet v1: a flat tree of patch folders with one GeoTIFF a band and a JSON of labels.

    Attributes:
        root: ``BigEarthNet-v1.0`` or the folder that holds it.
        train_list: file with one patch name a line (csv or csv.gz): the train split, if given.
        validation_list: the same for validation.
        test_list: the same for test.
        exclude_lists: files naming patches to leave out (snow, cloud, no label).
    """

    kind: str = "bigearthnet_v1"
    train_list: str = ""
    validation_list: str = ""
    test_list: str = ""
    exclude_lists: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class BigEarthNetV2Config(SourceConfig):
    """BigEarthNet v2 (refined): product folders of patch folders; labels and splits in parquet.

    Attributes:
        root: the folder that holds ``BigEarthNet-S2`` and the tables.
        tables: parquet tables, absolute or relative to the root. Only patches that a table lists
            are packed; the official second table adds those with snow, cloud or shadow.
        reference_maps: folder of CORINE maps, absolute or relative to the root. Where it is there,
            shards hold the share of every level-3 class and the irrigation labels.
        min_irrigated: a patch is irrigated if more than this share of its ground is.
        exclude_lists: files naming patches to leave out: ids, places (``33UUP_26_57``) or the names
            that the same patches have in v1.
    """

    kind: str = "bigearthnet_v2"
    tables: list[str] = field(default_factory=lambda: ["metadata.parquet"])
    reference_maps: str = "Reference_Maps"
    min_irrigated: float = 0.0
    exclude_lists: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        require(bool(self.tables), "source.tables is empty; name metadata.parquet")
        require(
            0 <= self.min_irrigated < 1,
            f"source.min_irrigated is {self.min_irrigated}; give a share from 0 to below 1",
        )


@dataclass(kw_only=True, slots=True)
class GeotiffConfig(SourceConfig):
    """Any collection of GeoTIFFs: all bands in a file or one file a band, EuroSAT MS for example.

    Attributes:
        file_bands: band names in the order of the files, all of them; empty: one file a band,
            whose name ends in the band's (``x_B2.tif``, ``x/nir.tif``).
        size_px: side of every patch in pixels of the finest bands.
        cut: cut larger files into whole patches from their upper left corner; else all files have
            the size of a patch.
        ground_resolution_m: side of a pixel of the finest bands in metres.
        native: with one file a band, bands of 20 and 60 m lie on their own grids; else all bands
            share one.
        values: what numbers in the files mean.
        nodata: number that marks nodata in all bands; overrides the tags of the files.
        nodata_by_band: the same for single bands: ``+source.nodata_by_band.B02=7``.
        boa_offset: what must be added, in digital numbers; -1000 or 0. Leave it out where a path
            holds the name of an ESA product that tells.
        reprocessed_offset: the same for products of baseline 99.99 alone, whose name tells nothing.
        override_offset: take ``boa_offset`` although names or pixels contradict it.
        any_grid: take files whose pixels are not ``ground_resolution_m`` by their own grid.
        places_from_corners: patches with one upper left corner are one place on several dates.
        label_table: CSV or parquet table of labels, absolute or relative to the root.
        id_column: its column of ids: a patch's id, or the last part of it.
        label_column: its column of classes: text, several parted by ``;``, or a list; empty for
            a table of splits alone.
        split_column: its column of splits; empty if it holds none.
        labels_from_folders: without a table, the name of a file's folder is its class.
        label_set: name of that labelling; empty takes the name of the source.
        exclude_lists: files naming patches to leave out by their whole ids, one a line; the id of
            a larger file leaves out all that is cut from it.
    """

    kind: str = "geotiff"
    file_bands: list[str] = field(default_factory=list)
    size_px: int = 64
    cut: bool = False
    ground_resolution_m: float = 10.0
    native: bool = False
    values: Values = Values.digital_numbers
    nodata: float | None = None
    nodata_by_band: dict[str, float] = field(default_factory=dict)
    boa_offset: int | None = None
    reprocessed_offset: int | None = None
    override_offset: bool = False
    any_grid: bool = False
    places_from_corners: bool = False
    label_table: str = ""
    id_column: str = "id"
    label_column: str = "label"
    split_column: str = ""
    labels_from_folders: bool = True
    label_set: str = ""
    exclude_lists: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        self.file_bands = canonical_names(self.file_bands)
        self.label_set = self.label_set or self.name
        self.nodata_by_band = {
            canonical_name(band): value for band, value in self.nodata_by_band.items()
        }
        require(self.size_px >= 1, f"source.size_px is {self.size_px}; give pixels, 1 or more")
        require(
            self.ground_resolution_m > 0,
            f"source.ground_resolution_m is {self.ground_resolution_m}; give metres above 0",
        )
        require(
            not (self.native and self.file_bands),
            "source.native is true, but source.file_bands puts all bands into one file, which has "
            "one grid; leave one of them out",
        )
        require(
            not (self.override_offset and self.boa_offset is None),
            "source.override_offset is true, but source.boa_offset is not set; say the offset too",
        )


@dataclass(kw_only=True, slots=True)
class SimulatedConfig(SourceConfig):
    """Synthesised patches, written to the root in the form of a real source and read from there.

    Attributes:
        root: empty folder to write to, or one that holds the same simulation.
        num_patches: patches to write; products round it up to whole regions on all dates.
        seed: any other seed is another world; the first patches do not depend on their number.
        form: tree (labelled patches) or safe (products without labels).
        num_dates: on which every place is seen, summers and winters in turn; for products.
        baseline: processing baseline of products; from 04.00 on they carry the offset.
    """

    kind: str = "simulated"
    num_patches: int = 1024
    seed: int = 0
    form: SimulatedForm = SimulatedForm.tree
    num_dates: int = 2
    baseline: str = "04.00"

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        require(self.num_patches >= 1, f"source.num_patches is {self.num_patches}; give 1 or more")
        require(self.seed >= 0, f"source.seed is {self.seed}; give 0 or more")
        require(
            1 <= self.num_dates <= 16, f"source.num_dates is {self.num_dates}; give 1 to 16 dates"
        )
        require(
            # 99.99, a reprocessing by others, tells nothing of the offset
            re.fullmatch(r"0\d\.\d\d", self.baseline) is not None,
            f"source.baseline is {self.baseline!r}; give one of ESA's, such as 04.00",
        )


@dataclass(kw_only=True, slots=True)
class PackConfig:
    """One source to be packed into one folder of shards.

    Attributes:
        source: what is packed.
        output: folder for shards and manifest.
        shard_size_mib: pixel bytes of a full shard before compression, in MiB; a shard holds at
            least one patch.
        compression: of the pixels: none, gzip, or with the extra ``compression`` bitshuffle-lz4
            or zstd. Sentinel-2 shrinks by a third at the price of slower reading.
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
        require(
            self.shard_size_mib > 0, f"shard_size_mib is {self.shard_size_mib}; give MiB above 0"
        )
        require(self.limit >= 0, f"limit is {self.limit}; give 0 for all, or a number of patches")
        require(
            0 <= self.max_rejected <= 1,
            f"max_rejected is {self.max_rejected}; give a share from 0 to 1",
        )


@dataclass(kw_only=True, slots=True)
class VerifyConfig:
    """A check of packed shards.

    Attributes:
        shards: folder with shards and manifest.
        quick: look at presence, sizes and structure only; no checksum, no pixel.
        repair: pack faulty shards again from their source.
        root: where the rasters are now, if they have moved since packing; for ``repair``.
        threads: shards that are looked at side by side; 0 takes the cores of this process.
    """

    shards: str = ""
    quick: bool = False
    repair: bool = False
    root: str = ""
    threads: int = 0

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"threads is {self.threads}; give 0 for all cores, or a number")


# west, south, east, north; not list[float], as whole degrees come as int from the command line
Box = list[Any]


@dataclass(kw_only=True, slots=True)
class SelectConfig:
    """Which products and which ground are taken at all.

    Attributes:
        boxes: areas of interest; a patch belongs to one if its centre does. Empty takes all.
        date_from: first day of acquisition, such as 2019-07-01; empty sets no bound.
        date_to: last day of acquisition, itself included.
        months: months of acquisition from 1 to 12; empty takes all.
        max_scene_cloud: cloud cover of a whole product in percent; only a first sieve.
        min_dates: patches of places seen on fewer days are dropped; 2 leaves seasonal pairs only.
        one_owner: take ground where tiles or UTM zones overlap from one tile only.
        exclude_lists: files naming ids or places to leave out, one a line, compared whole.
        exclude_boxes: areas that no patch may touch.
    """

    boxes: list[Box] = field(default_factory=list)
    date_from: str = ""
    date_to: str = ""
    months: list[int] = field(default_factory=list)
    max_scene_cloud: float = 100.0
    # counted in days, not products: a day may come in two processings, or from both sides of a cut
    min_dates: int = 1
    one_owner: bool = True
    exclude_lists: list[str] = field(default_factory=list)
    exclude_boxes: list[Box] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_boxes("source.select.boxes", self.boxes)
        _check_boxes("source.select.exclude_boxes", self.exclude_boxes)
        _check_day("source.select.date_from", self.date_from)
        _check_day("source.select.date_to", self.date_to)
        require(
            not (self.date_to and self.date_from > self.date_to),
            f"source.select.date_from {self.date_from} is after date_to {self.date_to}",
        )
        odd = [month for month in self.months if not 1 <= month <= 12]
        require(not odd, f"source.select.months names {odd}; months count from 1 to 12")
        require(
            0 <= self.max_scene_cloud <= 100,
            f"source.select.max_scene_cloud is {self.max_scene_cloud}; give 0 to 100 percent",
        )
        require(self.min_dates >= 1, f"source.select.min_dates is {self.min_dates}; give 1 or more")


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

    # no nodata at all: an edge of the swath is the easiest thing to tell two views by
    min_valid: float = 1.0
    max_cloud: float = 0.05
    max_shadow: float = 0.05
    max_snow: float = 0.05

    def __post_init__(self) -> None:
        for name in ("min_valid", "max_cloud", "max_shadow", "max_snow"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"source.filter.{name} is {value}; give a share from 0 to 1")


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Splits by geography: whole blocks of ground go to one split, on all dates.

    Attributes:
        block_km: side of a block; 0 leaves all patches without a split.
        buffer_km: every patch keeps this far from ground of another split, else it is dropped.
        validation: share of the blocks for validation.
        test: share of the blocks for test; the rest is train.
        seed: any other seed deals the blocks anew.
    """

    block_km: float = 0.0
    buffer_km: float = 1.2
    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.block_km >= 0, f"source.split.block_km is {self.block_km}; give 0 or kilometres"
        )
        require(self.buffer_km >= 0, f"source.split.buffer_km is {self.buffer_km}; give 0 or more")
        # a block narrower than that would have no patch that keeps its distance on both sides
        least = 2 * self.buffer_km + 2.4
        require(
            self.block_km == 0 or self.block_km > least,
            f"source.split.block_km is {self.block_km}, but a buffer of {self.buffer_km} km leaves "
            f"no ground in blocks up to {least:g} km; give larger blocks or a smaller buffer",
        )
        shares = (self.validation, self.test)
        require(
            min(shares) >= 0 and sum(shares) < 1,
            f"source.split.validation and test are {shares}; give shares with a sum below 1",
        )


@dataclass(kw_only=True, slots=True)
class ProductsConfig(SourceConfig):
    """What all sources of whole products have.

    Attributes:
        boa_offset: what must be added to the digital numbers, -1000 or 0. Leave it out where the
            metadata or the product name tells; a declaration that they contradict is an error.
        override_offset: take ``boa_offset`` even so.
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
        require(
            not (self.override_offset and self.boa_offset is None),
            "source.override_offset is true, but source.boa_offset is not set; say the offset too",
        )


@dataclass(kw_only=True, slots=True)
class SafeL2AConfig(ProductsConfig):
    """Sentinel-2 L2A products as ESA delivers them: SAFE folders, or those in a zip file.

    Attributes:
        root: a SAFE folder, a zip, or a folder with any number of them at any depth.
        resolution_m: 0 reads every band at its native ground resolution; 20 or 60 reads all bands
            as ESA resampled them to it.
    """

    kind: str = "safe_l2a"
    resolution_m: int = 0

    def __post_init__(self) -> None:
        ProductsConfig.__post_init__(self)
        require(
            self.resolution_m in (0, 20, 60),
            f"source.resolution_m is {self.resolution_m}; give 0 (native), 20 or 60",
        )


@dataclass(kw_only=True, slots=True)
class CogL2AConfig(ProductsConfig):
    """Sentinel-2 L2A as cloud-optimised GeoTIFFs, one a band, in a folder a scene (Earth Search).

    Attributes:
        root: folder with any number of scenes at any depth.
        decimation: by how much the publisher coarsened every band; 1 in the archive itself.
    """

    kind: str = "cog_l2a"
    decimation: int = 1

    def __post_init__(self) -> None:
        ProductsConfig.__post_init__(self)
        require(
            self.decimation in (1, 2, 5, 10),
            f"source.decimation is {self.decimation}; give 1, 2, 5 or 10",
        )


def _check_boxes(key: str, boxes: list[Box]) -> None:
    for box in boxes:
        require(
            len(box) == 4 and -180 <= box[0] < box[2] <= 180 and -90 <= box[1] < box[3] <= 90,
            f"{key} holds {box}; give [west, south, east, north] in degrees",
        )


def _check_day(key: str, day: str) -> None:
    try:
        date.fromisoformat(day or "2000-01-01")
    except ValueError as error:
        raise ValueError(f"{key} is {day!r}; give a day such as 2019-07-01") from error
