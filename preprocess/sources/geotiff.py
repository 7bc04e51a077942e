"""The source ``geotiff``: any collection of GeoTIFFs, such as EuroSAT MS or Earth Engine exports.

The user declares bands, unit and remaining offset, since such files rarely state them; band names,
tags, product names and dark pixels that contradict the declaration raise errors.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from preprocess.bands import BANDS, native_groups
from preprocess.grid import Grid
from preprocess.radiometry import (
    DARK_BANDS,
    Numbers,
    Offset,
    baseline_of,
    contradiction,
    decide,
    harmonise,
    offset_of,
)
from preprocess.raster import read_grid, session
from preprocess.shards.format import (
    GroupLayout,
    Labels,
    LabelSet,
    Patch,
    PatchError,
    PatchRef,
    ShardLayout,
)
from preprocess.sources.base import PRODUCT, Exclusions, Groups, Source, folder_of, iso_time, nfc
from preprocess.sources.geotiff_files import (
    GeotiffConfig,
    Patches,
    file_of,
    files_by_band,
    find_patches,
    read_pixels,
)
from preprocess.sources.labels import LabelTable

_SAMPLED = 16  # number of patches whose pixels are checked against the offset before packing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Geotiff(Source):
    """The source ``geotiff``."""

    config: GeotiffConfig
    _found: list[Patches] = field(default_factory=list, compare=False, repr=False)

    def processing_level(self) -> str:
        """Return the declared level, or that of the products in paths."""
        named = {found["level"] for _, path in self._patches() if (found := PRODUCT.search(path))}
        declared = self.config.processing_level
        if len(named | ({declared} if declared else set())) > 1:
            said = f", source.processing_level is {declared}" if declared else ""
            raise ValueError(
                f"paths in {self.config.root} name products of {' and '.join(sorted(named))}{said};"
                " pack one processing level at a time"
            )
        return declared or next(iter(named), "")

    def layout(self) -> ShardLayout:
        """Return the band groups and, if a table or folders give classes, one label set."""
        config, patches = self.config, self._patches()
        groups = self._groups(patches)
        if config.label_table:
            label_set = self._read_table().label_set
        else:
            folders = {_folder(patch) for patch, _ in patches if config.labels_from_folders}
            classes = tuple(sorted(folders - {""}))
            label_set = LabelSet(config.label_set, "single", classes) if classes else None
        return ShardLayout(groups, (label_set,) if label_set else ())

    def discover(self) -> Iterator[PatchRef]:
        """Yield all patches; an id is the relative path without the band and the suffix."""
        with session():
            found, excluded = self._patches(), Exclusions(self.config.exclude_lists)
            groups = self._groups(found)
            table = self._read_table() if self.config.label_table else None
            if table:
                table.match([*dict.fromkeys(patch for patch, _ in found)])
            patches = [(patch, path) for patch, path in found if patch not in excluded]
            for _, path in patches:  # by name only: half a million take seconds
                self._offset(path, None)
            self._check_dark_pixels(patches, groups)
            cuts = self._cuts(patches, groups[0].bands[0]) if self.config.cut else None
        refs = self._references(patches, table, excluded, cuts)
        # pieces of "a" and of "a_000" interleave; uncut patches are already in order
        yield from sorted(refs, key=lambda ref: ref.id) if cuts else refs

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the bands of the layout from the files of one patch."""
        numbers, grid, tagged = read_pixels(self.config, ref, layout.groups)
        root = Path(self.config.root)
        try:
            offset = self._offset(ref.path, tagged)
        except ValueError as error:
            raise PatchError(root / ref.path, str(error)) from error
        if found := self._contradiction(offset, numbers, layout.groups):
            raise PatchError(root / ref.path, found)
        facts = self._facts(ref.path)
        return Patch(
            id=ref.id,
            pixels={name: harmonise(n, offset.value) for name, n in numbers.items()},
            labels=ref.labels,
            product=facts.get("product", ""),
            tile=facts.get("tile", ""),
            place=self._place(facts.get("place", ""), ref, grid),
            acquired=facts.get("acquired", ""),
            split=ref.split,
            baseline=baseline_of(ref.path),
            offset=offset.value,
            offset_authority=offset.authority,
            epsg=grid.epsg,
            crs_wkt=grid.crs.wkt,
            transform=grid.transform,
        )

    def _patches(self) -> Patches:
        if not self._found:  # walk only once: half a million files take minutes on Lustre
            root = folder_of(self.config.root)
            self._found.append(find_patches(root, not self.config.file_bands))
        return self._found[0]

    def _groups(self, patches: Patches) -> Groups:
        """Return the groups of the wanted bands, by default of all bands found, finest first."""
        config, root, size_m = self.config, Path(self.config.root), self.config.ground_resolution_m
        # the union: a patch that lacks a band is rejected, rather than the band dropped for all
        paths = () if config.file_bands else [path for _, path in patches]
        found = {band for path in paths for band in files_by_band(root, path)}
        held = config.file_bands or [band for band in BANDS if band in found]
        foreign = [band for band in (*config.bands, *config.nodata_by_band) if band not in held]
        if foreign:
            raise ValueError(
                f"source.{'bands' if foreign[0] in config.bands else 'nodata_by_band'} names "
                f"{foreign[0]}, which "
                f"{'source.file_bands does not' if config.file_bands else 'no file holds'}: "
                f"{', '.join(held)}"
            )
        bands = config.bands or held
        if not config.native:
            return (GroupLayout(f"b{size_m:g}", tuple(bands), config.size_px, size_m),)
        groups, native = [], native_groups(bands)
        # relative to the finest band found: decimated sets keep the ratios of their grids
        finest = int(next(iter(native))[1:])
        for name, members in native.items():
            coarser = int(name[1:]) // finest
            if config.size_px % coarser:
                raise ValueError(
                    f"source.size_px is {config.size_px}, which {members[0]} with pixels {coarser} "
                    f"times as wide does not fill; give a multiple of {coarser}"
                )
            size_px = config.size_px // coarser
            groups.append(GroupLayout(name, tuple(members), size_px, coarser * size_m))
        return tuple(groups)

    def _read_table(self) -> LabelTable:
        config = self.config
        here, in_root = Path(config.label_table), Path(config.root, config.label_table)
        return LabelTable(
            here if here.is_file() and not in_root.is_file() else in_root,
            config.label_set,
            config.id_column,
            config.label_column,
            config.split_column,
        )

    def _references(
        self,
        patches: Patches,
        table: LabelTable | None,
        excluded: Exclusions,
        cuts: dict[str, tuple[int, int]] | None,
    ) -> Iterator[PatchRef]:
        for patch, path in patches:
            folder = _folder(patch) if self.config.labels_from_folders else ""
            by_folder: Labels = {self.config.label_set: (folder,)} if folder else {}
            split, labels = table.of(patch) if table else ("", by_folder)
            columns, rows = cuts[path] if cuts else (0, 0)
            pieces = [f"{patch}_{c:03d}_{r:03d}" for c in range(columns) for r in range(rows)]
            for patch_id in pieces if cuts else [patch]:
                if patch_id not in excluded:
                    yield PatchRef(patch_id, path, split, labels)
        excluded.log_unused()

    def _cuts(self, patches: Patches, finest: str) -> dict[str, tuple[int, int]]:
        """Return the columns and rows of patches in every file, and log how much ground is lost."""
        config, root = self.config, Path(self.config.root)
        cuts: dict[str, tuple[int, int]] = {}
        sizes = Counter[tuple[int, int]]()
        for _, path in patches:
            cuts[path] = (1, 1)  # for a file that cannot be opened: reading rejects it with reason
            try:
                grid = read_grid(root / path if config.file_bands else file_of(root, path, finest))
            except PatchError:
                continue
            sizes[grid.width, grid.height] += 1
            # a file that is too small counts as one patch, which reading rejects
            columns, rows = grid.width // config.size_px, grid.height // config.size_px
            cuts[path] = max(1, columns), max(1, rows)
        kept = _share_kept(sizes, config.size_px)
        if kept < 0.999:
            step = 6 if config.native else 1  # bands of 60 m need whole pixels too
            near = range(max(1, config.size_px // 2 // step) * step, config.size_px * 3 // 2, step)
            best = max(near, key=lambda size_px: (_share_kept(sizes, size_px), size_px), default=0)
            better = _share_kept(sizes, best) if best else 0
            hint = f"; source.size_px={best} keeps {100 * better:.1f} %" if better > kept else ""
            message = (
                "source.cut leaves out %.1f %% of the ground: what is right of and below the last "
                "whole patch of %d pixels%s"
            )
            _log.warning(message, 100 * (1 - kept), config.size_px, hint)
        return cuts

    def _facts(self, path: str) -> dict[str, str]:
        """Return facts from an ESA product name in a path, overridden by ``path_pattern``."""
        product, whole = PRODUCT.search(path), Path(self.config.root) / path
        facts = {**product.groupdict(), "product": product[0]} if product else {}
        if self.config.path_pattern:
            found = re.search(nfc(self.config.path_pattern), nfc(path))
            if found is None:
                raise PatchError(whole, "source.path_pattern does not match its path")
            facts |= {name: text for name, text in found.groupdict().items() if text}
        stamp = facts.get("acquired", "")
        try:
            if len(stamp) == 8:
                facts["acquired"] = iso_time(f"{stamp}T000000")[:10]
            elif stamp:
                facts["acquired"] = iso_time(stamp)
        except ValueError as error:
            raise PatchError(whole, f"acquired is {stamp!r}, not as 20200131T101031") from error
        return facts

    def _offset(self, path: str, tagged: int | None) -> Offset:
        """Return the offset from tags, the product name in the path, or the settings; no guess."""
        config, product = self.config, PRODUCT.search(path)
        name = product[0] if product else PurePosixPath(path).name
        baseline = baseline_of(name)
        # one declaration for all would contradict the names of ESA's own products among these
        again = config.reprocessed_offset if baseline == "99.99" else None
        claims = {"tags": tagged, "name": offset_of(baseline)}
        declared = config.boa_offset if again is None else again
        return decide(name, claims, declared, config.override_offset)

    def _check_dark_pixels(self, patches: Patches, groups: Groups) -> None:
        """Raise ``ValueError`` if tags or dark pixels of some patches contradict the offset.

        Otherwise packing would only reject patches one by one.
        """
        # spread over the collection, since neighbours come from one scene
        for patch, path in patches[:: max(1, len(patches) // _SAMPLED)]:
            ref = PatchRef(f"{patch}_000_000" if self.config.cut else patch, path)
            if not self._offset(path, None).value:
                continue  # no pixel can be too dark, so none is read
            try:
                numbers, _, tagged = read_pixels(self.config, ref, groups)
            except PatchError:
                continue  # packing will reject the bad file
            if found := self._contradiction(self._offset(path, tagged), numbers, groups):
                raise ValueError(f"{path}: {found}")

    def _contradiction(self, offset: Offset, numbers: dict[str, Numbers], groups: Groups) -> str:
        """Return how dark pixels contradict the offset; without an SCL, only -1000 is checked."""
        if self.config.override_offset or not offset.value:
            return ""
        dark = {
            band: numbers[group.name][number]
            for group in groups
            for number, band in enumerate(group.bands)
            if band in DARK_BANDS
        }
        found = contradiction(offset.value, dark, None)
        return found and (
            f"the offset is {offset.value} by {offset.authority}, but {found}; correct "
            "source.boa_offset, with source.override_offset=true if the pixels mislead"
        )

    def _place(self, named: str, ref: PatchRef, grid: Grid) -> str:
        if named:  # a path names all that is cut from a file, which is not one place
            return "_".join([named, *ref.id.rsplit("_", 2)[1:]]) if self.config.cut else named
        if not (self.config.places_from_corners and grid.epsg):
            return ""
        # rounded to metres: exports of two dates may differ in the last bits of a corner
        digits = 0 if grid.crs.unit_m else 6
        _, _, x, _, _, y = grid.transform
        return f"{grid.epsg}_{x:.{digits}f}_{y:.{digits}f}"


def _share_kept(sizes: Counter[tuple[int, int]], size_px: int) -> float:
    whole = sum(w // size_px * (h // size_px) * n for (w, h), n in sizes.items()) * size_px**2
    return whole / max(1, sum(w * h * n for (w, h), n in sizes.items()))


def _folder(patch: str) -> str:
    return patch.rpartition("/")[0].rpartition("/")[2]
