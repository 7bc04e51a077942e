"""Any collection of GeoTIFFs, EuroSAT MS or Earth Engine exports: files come in, patches go out.

Which bands, what the numbers mean and which offset is left in them is declared, since such files
rarely say; what they do say, by band names, product names and dark pixels, may contradict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from preprocess.bands import BANDS, native_groups
from preprocess.config import GeotiffConfig
from preprocess.harmonise import (
    DARK_BANDS,
    Offset,
    baseline_of,
    contradiction,
    decide,
    harmonise,
    offset_of,
)
from preprocess.patch import Labels, Patch, PatchError, PatchRef
from preprocess.raster import session
from preprocess.shards.layout import GroupLayout, LabelSet, ShardLayout
from preprocess.sources.geotiff_files import bands_of, file_of, find_patches
from preprocess.sources.geotiff_pixels import Pixels, patches_along, read_pixels
from preprocess.sources.names import iso_time, read_exclusions
from preprocess.sources.tables import LabelTable, read_label_table

_PRODUCT = re.compile(
    r"(?:S2[ABC]|SIM)_MSIL[12][AC]_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}_T(?P<tile>\d{2}[A-Z]{3})_[\dT]+"
)
Patches = list[tuple[str, str]]  # id and path
_LISTENED = 16  # patches whose pixels may contradict the offset before packing starts


@dataclass(frozen=True, slots=True)
class Geotiff:
    """The source ``geotiff``."""

    config: GeotiffConfig

    @property
    def simulated(self) -> bool:
        """Taken as measured; this source cannot know."""
        return False

    def layout(self) -> ShardLayout:
        """Return the band groups and, if a table or folders name classes, one label set."""
        patches = self._patches()
        groups = groups_of(self.config, self._bands(patches))
        label_set = self._label_set(patches)
        return ShardLayout(groups, (label_set,) if label_set else ())

    def discover(self) -> Iterator[PatchRef]:
        """Yield all patches; an id is a path relative to the root without what files differ in."""
        with session():
            patches = self._patches()
            groups = groups_of(self.config, self._bands(patches))
            for _, path in patches:  # names only: half a million take seconds
                self._offset(path)
            self._listen(patches, groups)
            refs = iter(self._references(patches, groups))
            if self.config.cut:
                # pieces of "a" and of "a_000" interleave; whole patches are in order as they are
                refs = iter(sorted(refs, key=lambda ref: ref.id))
        yield from refs  # outside: who stops listening early must not leave GDAL set up

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the files of one patch and keep the bands of the layout."""
        # offset first: nothing is read of a collection that nobody vouches for
        offset = self._offset(ref.path)
        pixels = read_pixels(self.config, ref, layout.groups)
        found = self._doubt(offset, pixels, layout.groups)
        if found:
            raise PatchError(Path(self.config.root) / ref.path, found)
        product = _PRODUCT.search(ref.path)
        return Patch(
            id=ref.id,
            pixels={name: harmonise(n, offset.value) for name, n in pixels.numbers.items()},
            labels=ref.labels,
            product=product[0] if product else "",
            tile=product["tile"] if product else "",
            place=self._place(pixels),
            acquired=iso_time(product["time"]) if product else "",
            split=ref.split,
            baseline=baseline_of(ref.path),
            offset=offset.value,
            offset_authority=offset.authority,
            epsg=pixels.epsg,
            transform=pixels.transform,
        )

    def _patches(self) -> Patches:
        return find_patches(Path(self.config.root), not self.config.file_bands)

    def _bands(self, patches: Patches) -> list[str]:
        """Return the wanted bands, by default all that there are."""
        config = self.config
        # the union: a patch that lacks a band is rejected by name, not the band dropped for all
        found = set() if config.file_bands else bands_of(Path(config.root), patches)
        held = config.file_bands or [band for band in BANDS if band in found]
        foreign = [band for band in config.bands if band not in held]
        if foreign:
            raise ValueError(
                f"source.bands names {foreign[0]}, which "
                f"{'source.file_bands does not' if config.file_bands else 'no file holds'}: "
                f"{', '.join(held)}"
            )
        return config.bands or list(held)

    def _label_set(self, patches: Patches) -> LabelSet | None:
        config = self.config
        if config.label_table:
            return read_label_table(config).label_set
        classes = sorted({name for patch, _ in patches if (name := _folder(patch))})
        if not (config.labels_from_folders and classes):
            return None
        return LabelSet(config.label_set, "single", tuple(classes))

    def _references(self, patches: Patches, groups: tuple[GroupLayout, ...]) -> Iterator[PatchRef]:
        table = self._table(patches)
        excluded = read_exclusions(self.config.exclude_lists)
        for patch, path in patches:
            split, labels = table.of(patch) if table else ("", self._folder_labels(patch))
            for patch_id in self._cut(patch, path, groups[0].bands[0]):
                if excluded.isdisjoint((patch, patch_id)):
                    yield PatchRef(patch_id, path, split, labels)

    def _table(self, patches: Patches) -> LabelTable | None:
        if not self.config.label_table:
            return None
        table = read_label_table(self.config)
        if not any(patch in table for patch, _ in patches):
            raise ValueError(
                f"none of the {len(patches)} patches in {self.config.root} is listed in "
                f"{self.config.label_table}; its ids should look like {patches[0][0]}"
            )
        return table

    def _folder_labels(self, patch: str) -> Labels:
        folder = _folder(patch) if self.config.labels_from_folders else ""
        return {self.config.label_set: (folder,)} if folder else {}

    def _cut(self, patch: str, path: str, finest: str) -> Iterator[str]:
        """Yield the ids of the patches that one file, or one set of files, is cut into."""
        config, root = self.config, Path(self.config.root)
        if not config.cut:
            yield patch
            return
        try:
            file = root / path if config.file_bands else file_of(root, path, finest)
            columns, rows = patches_along(file, config.size_px)
        except PatchError:
            columns, rows = 1, 1  # reading will reject it and say why
        for column in range(columns):
            yield from (f"{patch}_{column:03d}_{row:03d}" for row in range(rows))

    def _offset(self, path: str) -> Offset:
        """Return the offset by the product's name in a path, or as declared; never guessed."""
        config, product = self.config, _PRODUCT.search(path)
        name = product[0] if product else PurePosixPath(path).name
        baseline = baseline_of(name)
        # one declaration for all would contradict the names of ESA's own products beside these
        again = config.reprocessed_offset if baseline == "99.99" else None
        claims = {"name": offset_of(baseline)}
        declared = config.boa_offset if again is None else again
        return decide(name, claims, declared, config.override_offset)

    def _listen(self, patches: Patches, groups: tuple[GroupLayout, ...]) -> None:
        """Refuse an offset that the darkest pixels of some patches contradict.

        Raises:
            ValueError: they do; packing all the others would only reject one by one.
        """
        # spread over the collection: neighbours come from one scene
        for patch, path in patches[:: max(1, len(patches) // _LISTENED)]:
            offset = self._offset(path)
            if not offset.value:
                continue  # nothing can be too dark, so nothing is read
            first = next(self._cut(patch, path, groups[0].bands[0]))
            try:
                pixels = read_pixels(self.config, PatchRef(first, path), groups)
            except PatchError:
                continue  # a bad file is packing's to reject
            found = self._doubt(offset, pixels, groups)
            if found:
                raise ValueError(f"{path}: {found}")

    def _doubt(self, offset: Offset, pixels: Pixels, groups: tuple[GroupLayout, ...]) -> str:
        """Say how dark pixels contradict the offset; without a classification only -1000 can be."""
        if self.config.override_offset or not offset.value:
            return ""
        dark = {
            band: pixels.numbers[group.name][number]
            for group in groups
            for number, band in enumerate(group.bands)
            if band in DARK_BANDS
        }
        found = contradiction(offset.value, dark, None)
        return found and (
            f"the offset is {offset.value} by {offset.authority}, but {found}; correct "
            "source.boa_offset, with source.override_offset=true if the pixels mislead"
        )

    def _place(self, pixels: Pixels) -> str:
        if not (self.config.places_from_corners and pixels.epsg):
            return ""
        # to the metre: exports of two dates may differ in the last bits of a corner
        _, _, x, _, _, y = pixels.transform
        return f"{pixels.epsg}_{x:.0f}_{y:.0f}"


def groups_of(config: GeotiffConfig, bands: list[str]) -> tuple[GroupLayout, ...]:
    """Return the band groups of a patch, finest first.

    Raises:
        ValueError: a native grid would not end with the patch.
    """
    size_m = config.ground_resolution_m
    if not config.native:
        return (GroupLayout(f"b{size_m:g}", tuple(bands), config.size_px, size_m),)
    groups = []
    native = native_groups(bands)
    # relative to the finest band there is: decimated sets keep the ratios of their grids
    finest = int(next(iter(native))[1:])
    for name, members in native.items():
        coarser = int(name[1:]) // finest
        if config.size_px % coarser:
            raise ValueError(
                f"source.size_px is {config.size_px}, which {members[0]} with pixels {coarser} "
                f"times as wide does not fill; give a multiple of {coarser}"
            )
        group = GroupLayout(name, tuple(members), config.size_px // coarser, coarser * size_m)
        groups.append(group)
    return tuple(groups)


def _folder(patch: str) -> str:
    return patch.rpartition("/")[0].rpartition("/")[2]
