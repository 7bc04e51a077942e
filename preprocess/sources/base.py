"""The interface of a source, and shared functions for bands, walks over folders, names, lists."""

from __future__ import annotations

import csv
import gzip
import logging
import os
import re
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from preprocess.bands import L2A_BANDS, canonical_name, canonical_names, native_groups
from preprocess.grid import Grid
from preprocess.raster import Raster, read_raster
from preprocess.shards.format import Dropped, GroupLayout, Patch, PatchError, PatchRef, ShardLayout
from preprocess.tiling import PATCH_SIDE_M, window_of

Groups = tuple[GroupLayout, ...]

# ESA product name, from the satellite to the time that distinguishes processings
PRODUCT = re.compile(
    r"S2[A-D]_MSI(?P<level>L[12][AC])_(?P<acquired>\d{8}T\d{6})_N\d{4}_R\d{3}"
    r"_T(?P<tile>\d{2}[A-Z]{3})_\d{8}T\d{6}"
)


class Source(ABC):
    """A configured source: frozen, without open files, usable from several processes.

    Attributes:
        simulated: True if the patches were synthesised, never measured.
    """

    __slots__ = ()
    simulated: ClassVar[bool] = False

    def processing_level(self) -> str:
        """Return L1C (top of atmosphere) or L2A (surface reflectance); empty if unknown.

        Raises:
            ValueError: the files have both levels, or another than declared.
        """
        return "L2A"

    @abstractmethod
    def layout(self) -> ShardLayout:
        """Return the layout of every sample.

        Raises:
            ValueError: the settings cannot be met, for example because a band does not exist.
        """

    @abstractmethod
    def discover(self) -> Iterator[PatchRef | Dropped]:
        """Yield all references in order of id, and patches dropped by choice.

        Raises:
            ValueError: the root contains nothing of this source; the message says what is expected.
        """

    @abstractmethod
    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one patch in the groups and bands of the layout.

        Raises:
            PatchError: a file of the patch is missing, unreadable or of another shape.
        """


def patch_groups(
    bands: Iterable[str], held: Sequence[str] = L2A_BANDS, factor: int = 1, resolution_m: int = 0
) -> Groups:
    """Return the band groups of 1.2 km patches.

    Args:
        bands: wanted bands; empty for all of ``held``.
        held: available bands; others raise ``ValueError``.
        factor: factor by which the files are coarser than native.
        resolution_m: ground resolution at which to read all bands; 0 for native ones.
    """
    wanted = canonical_names(bands) or list(held)
    foreign = [name for name in wanted if name not in held]
    if foreign:
        raise ValueError(
            f"source.bands names {foreign[0]}, which this source does not hold; it holds "
            f"{', '.join(held)}"
        )
    native = {f"b{resolution_m}": wanted} if resolution_m else native_groups(wanted)
    by_size_m = {int(name[1:]) * factor: tuple(members) for name, members in native.items()}
    return tuple(
        GroupLayout(f"b{size_m}", members, PATCH_SIDE_M // size_m, float(size_m))
        for size_m, members in by_size_m.items()
    )


def read_groups(
    paths: Mapping[str, Path], groups: Groups, square: tuple[int, int] | None = None
) -> tuple[dict[str, npt.NDArray[np.uint16]], Grid, int | None]:
    """Read one patch from single-band rasters.

    Args:
        paths: raster of each band.
        groups: band groups to read.
        square: column and row in rasters of a whole tile; None if the rasters are the patch.

    Returns:
        Digital numbers (bands, size_px, size_px) by group; grid of the first band; the offset
        stated by tags of the rasters, or None without tags.

    Raises:
        PatchError: a raster is missing, unreadable or of another size, or its position or offset
            differs from the others.
    """
    grids: list[Grid] = []
    tagged: int | None = None
    pixels = {}
    for group in groups:
        window = window_of(*square, int(group.ground_resolution_m)) if square else None
        parts = []
        for band in group.bands:
            path, raster = paths[band], read_raster(paths[band], window)
            grids.append(raster.grid)
            if fault := misfit(raster, group, grids[0]):
                raise PatchError(path, fault)
            claim = raster.grid.boa_offset
            if claim is not None and tagged not in (None, claim):
                raise PatchError(
                    path, f"its tags claim the offset {claim}, those of other bands {tagged}"
                )
            tagged = tagged if claim is None else claim
            parts.append(raster.pixels)
        pixels[group.name] = np.concatenate(parts)
    return pixels, grids[0], tagged


def misfit(raster: Raster, group: GroupLayout, first: Grid) -> str:
    """Return why a raster cannot be a band of a patch, or an empty string."""
    count, height, width = raster.pixels.shape
    if (count, height, width) != (1, group.size_px, group.size_px):
        return (
            f"is {count} band(s) of {width} x {height} pixels, {group.bands[0]} and its group are "
            f"1 band(s) of {group.size_px} x {group.size_px} pixels"
        )
    fault = raster.grid.fault(group.ground_resolution_m)
    # each file has its own grid; nothing else shows that they cover the same ground
    if fault or raster.grid.corner == first.corner:
        return fault
    (crs, x, y), (first_crs, first_x, first_y) = raster.grid.corner, first.corner
    there = f"{first_crs} ({first_x}, {first_y})"
    return f"lies at {crs} ({x}, {y}), the first band of the patch at {there}"


def folder_of(root: str) -> Path:
    """Return the root of a source; ``ValueError`` if it is not a folder."""
    if not Path(root).is_dir():
        raise ValueError(f"source.root is {root!r}, which is not a folder")
    return Path(root)


def iso_time(stamp: str) -> str:
    """Return a UTC time from a product name, such as ``20170613T101031``, in ISO 8601."""
    if len(stamp) != 15:  # strptime would read 2020111 as 1 November
        raise ValueError(f"{stamp!r} is not a time such as 20170613T101031")
    return datetime.strptime(stamp, "%Y%m%dT%H%M%S").isoformat() + "Z"


def read_names(path: str) -> set[str]:
    """Read a list with one complete name per line, plain or gzipped.

    Only the first column of a CSV line counts: the multi-modal release adds the radar name.
    """
    try:
        raw = Path(path).read_bytes()
        # spreadsheets put a byte order mark before the first name, R puts names in quotes
        text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode("utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the list of patches {path} cannot be read ({error})") from error
    return {without_suffix(nfc(row[0].strip())) for row in rows} - {""}


class Exclusions(Set[str]):
    """The names of exclusion lists; tracks names never looked up, which exclude nothing."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._names = set[str]().union(*map(read_names, paths))
        self._unused = set(self._names)

    def __contains__(self, name: object) -> bool:
        self._unused.discard(str(name))
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def log_unused(self) -> None:
        """Log the number of names that were never looked up."""
        if self._unused:
            message = "%d of %d names on exclusion lists exclude nothing: %s, for example"
            _log.warning(message, len(self._unused), len(self), min(self._unused))


def read_splits(lists: Mapping[str, str]) -> dict[str, str]:
    """Return the split of every listed name.

    Args:
        lists: path of the list of each split; empty for no list.

    Raises:
        ValueError: a list is unreadable, or two lists share a name: mixing the lists of two
            releases would silently put test patches into training.
    """
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        for name in read_names(path) if path else ():
            if name in split_of:
                raise ValueError(f"{name} is both in the {split_of[name]} and the {split} list")
            split_of[name] = split
    return split_of


_log = logging.getLogger(__name__)
_SYSTEM_NAMES = {"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
GEOTIFF_SUFFIXES = (".tif", ".tiff")
_BAND_FILE = re.compile(r"(?:(?P<patch>.+)[_\-. ])?(?P<band>[^_\-. ]+)")


def nfc(text: str) -> str:
    """Return the composed (NFC) form of a text; macOS writes accents as separate characters."""
    return unicodedata.normalize("NFC", text)


def without_suffix(name: str) -> str:
    """Return a name without the suffix of GeoTIFFs, as used in ids."""
    return re.sub(r"\.tiff?$", "", name, flags=re.IGNORECASE)


def is_passed_over(name: str) -> bool:
    """Return whether a name is hidden (``.ipynb_checkpoints``, ``._x``) or a system entry."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def split_band_file(stem: str) -> tuple[str, str]:
    """Return patch and canonical band of a file name without suffix; the band may be empty."""
    found = _BAND_FILE.fullmatch(stem)
    try:
        return (found["patch"] or "", canonical_name(found["band"])) if found else (stem, "")
    except ValueError:
        return stem, ""  # a side file, such as a mask or a thumbnail


def files_below(
    root: Path, is_whole: Callable[[str], object] = lambda name: False
) -> Iterator[tuple[str, list[str]]]:
    r"""Yield each folder below a root, as a path relative to it, with the names of its files.

    Links to folders are followed; each folder is visited once, and none above the root. A folder
    for whose name ``is_whole`` is true counts as a file and is not entered. Hidden and system names
    are skipped; one log line counts them. Bytes that are not UTF-8 are shown as in ``caf\xe9``.

    Raises:
        OSError: a folder cannot be listed. Python's own walks would skip it, and its patches would
            silently be missing.
    """
    walked: set[tuple[int, int]] = set()
    num_hidden = num_again = 0
    real_root = os.path.realpath(root)
    folders = [(real_root, ".")]
    # links come last, so that a folder is named by its own path where it has one
    links = deque[tuple[str, str]]()
    while folders or links:
        folder, shown = folders.pop() if folders else links.popleft()
        # not by path: a folder mounted at two places is one folder
        status = Path(folder).stat()
        identity = status.st_dev, status.st_ino
        if identity in walked or real_root.startswith(f"{folder.rstrip(os.sep)}{os.sep}"):
            num_again += 1  # already visited, or above the root
            continue
        walked.add(identity)
        names = []
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = os.fsencode(entry.name).decode(errors="backslashreplace")
            inside = name if shown == "." else f"{shown}/{name}"
            if is_passed_over(name):
                num_hidden += 1
            elif is_whole(name) or not entry.is_dir():
                names.append(name)
            elif entry.is_symlink():
                links.append((os.path.realpath(entry.path), inside))
            else:
                folders.append((entry.path, inside))
        yield shown, names
    if num_hidden or num_again:
        message = (
            "%s: passed over %d hidden or system entries and %d folders seen before (links, mounts)"
        )
        _log.info(message, root, num_hidden, num_again)
