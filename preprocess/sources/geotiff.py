"""Multi-band GeoTIFFs of one size, EuroSAT MS for example: files come in, labelled patches go out.

The band list is declared, since such files rarely name their bands; classes are folder names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from preprocess.config import GeotiffConfig
from preprocess.patch import Labels, Patch, PatchError, PatchRef
from preprocess.raster import read_raster
from preprocess.shards.layout import GroupLayout, LabelSet, ShardLayout

SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Geotiff:
    """The source ``geotiff``."""

    config: GeotiffConfig

    @property
    def simulated(self) -> bool:
        """Taken as measured; this source cannot know."""
        return False

    def layout(self) -> ShardLayout:
        """Return one band group and, if files lie in folders, one label set."""
        config = self.config
        bands = tuple(config.bands or config.file_bands)
        self._check_bands(bands)
        group = GroupLayout(
            f"b{config.ground_resolution_m:g}", bands, config.size_px, config.ground_resolution_m
        )
        classes = sorted({name for path in self._files() if (name := _folder(path))})
        if not (config.labels_from_folders and classes):
            return ShardLayout((group,))
        return ShardLayout((group,), (LabelSet(config.label_set, "single", tuple(classes)),))

    def discover(self) -> Iterator[PatchRef]:
        """Yield all files; an id is a path relative to the root, without its suffix."""
        for path in sorted(self._files(), key=_id):
            folder = _folder(path) if self.config.labels_from_folders else ""
            labels: Labels = {self.config.label_set: (folder,)} if folder else {}
            yield PatchRef(_id(path), path.as_posix(), labels=labels)

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one file and keep the bands of the layout."""
        path = Path(self.config.root) / ref.path
        raster = read_raster(path)
        file_bands, (group,) = self.config.file_bands, layout.groups
        count, height, width = raster.pixels.shape
        if count != len(file_bands):
            raise PatchError(
                path, f"has {count} band(s), source.file_bands names {len(file_bands)}"
            )
        if (height, width) != (group.size_px, group.size_px):
            raise PatchError(
                path, f"is {width} x {height} pixels, source.size_px is {group.size_px}"
            )
        channels = [file_bands.index(band) for band in group.bands]
        return Patch(
            id=ref.id,
            pixels={group.name: raster.pixels[channels]},
            labels=ref.labels,
            split=ref.split,
            epsg=raster.epsg,
            transform=raster.transform,
        )

    def _check_bands(self, bands: tuple[str, ...]) -> None:
        declared = self.config.file_bands
        if not declared:
            raise ValueError(
                "source.file_bands is empty; name all bands in the order of the files, "
                "source.file_bands=[B02,B03,B04,B08] for example"
            )
        foreign = [band for band in bands if band not in declared]
        if foreign:
            raise ValueError(
                f"source.bands names {foreign[0]}, which source.file_bands does not: "
                f"{', '.join(declared)}"
            )

    def _files(self) -> list[PurePosixPath]:
        root = Path(self.config.root)
        if not root.is_dir():
            raise ValueError(f"source.root is {str(root)!r}, which is not a folder")
        found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES]
        if not found:
            raise ValueError(f"no GeoTIFF in {root}: sought files with {' or '.join(SUFFIXES)}")
        return [PurePosixPath(path.relative_to(root).as_posix()) for path in found]


def _id(path: PurePosixPath) -> str:
    return path.with_suffix("").as_posix()


def _folder(path: PurePosixPath) -> str:
    return path.parent.name
