"""Which files make a patch: a folder tree comes in, patches with their files by band go out.

A file with all bands is a patch. Of files with one band each, those whose names differ in nothing
but the band are one: ``a_B2.tif`` and ``a_B3.tif``, or ``a/B02.tif`` and ``a/B03.tif``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path, PurePosixPath

from preprocess.bands import canonical_name
from preprocess.patch import PatchError
from preprocess.sources.tree import files_below

SUFFIXES = (".tif", ".tiff")
MANY = "_*"  # ends the path of a patch whose files lie beside those of others
_NAME = re.compile(r"(?:(?P<patch>.+)[_\-. ])?(?P<band>[^_\-. ]+)")

Files = dict[str, list[str]]  # names by band


def find_patches(root: Path, one_file_a_band: bool) -> list[tuple[str, str]]:
    """Return id and path of every patch, sorted; an id is the path without what files differ in.

    Raises:
        ValueError: the root is not a folder, holds no GeoTIFF, or none that is named after a band.
    """
    files = _find_files(root)
    if not one_file_a_band:
        return sorted((path.rpartition(".")[0], path) for path in files)
    patches = {}
    for path in files:
        folder, slash, name = path.rpartition("/")
        patch, band = split_name(name.rpartition(".")[0])
        if band:
            whole = folder + slash + patch if patch else folder
            # a folder of its own needs no mark, and cannot be confused with a prefix in it
            patches[whole] = whole + MANY if patch else whole
    if not patches:
        raise ValueError(
            f"no GeoTIFF in {root} is named after its band, as x_B2.tif or x/nir.tif are "
            f"({files[0]} is not); if files hold several bands, name them in their order: "
            "source.file_bands=[B02,B03,B04,B08] for example"
        )
    return sorted(patches.items())


def bands_of(root: Path, patches: list[tuple[str, str]]) -> set[str]:
    """Return the bands that any patch has a file of."""
    return {band for _, path in patches for band in _files_of(root, path)}


def file_of(root: Path, path: str, band: str) -> Path:
    """Return the file of one band of a patch.

    Raises:
        PatchError: there is none, or more than one.
    """
    names = _files_of(root, path).get(band, [])
    if len(names) != 1:
        reason = f"holds {band} twice: {' and '.join(names)}" if names else f"{band} is missing"
        raise PatchError(root / path, reason)
    return _folder_of(root, path) / names[0]


def split_name(stem: str) -> tuple[str, str]:
    """Return what a file's name says of patch and canonical band; an empty band is none."""
    found = _NAME.fullmatch(stem)
    if found is None:
        return stem, ""
    try:
        return found["patch"] or "", canonical_name(found["band"])
    except ValueError:
        return stem, ""  # a side file: a mask, a thumbnail


def _find_files(root: Path) -> list[str]:
    """Return all GeoTIFFs below a folder, relative to it."""
    if not root.is_dir():
        raise ValueError(f"source.root is {str(root)!r}, which is not a folder")
    found = []
    for inside, names in files_below(root):
        prefix = "" if inside == "." else f"{inside}/"
        # text: as paths, half a million files would take half a gigabyte
        found += [prefix + name for name in names if name.lower().endswith(SUFFIXES)]
    if not found:
        raise ValueError(f"no GeoTIFF in {root}: sought files with {' or '.join(SUFFIXES)}")
    return found


def _files_of(root: Path, path: str) -> Files:
    patch = PurePosixPath(path.removesuffix(MANY)).name if path.endswith(MANY) else ""
    return _listing(_folder_of(root, path)).get(patch, {})


def _folder_of(root: Path, path: str) -> Path:
    return (root / path).parent if path.endswith(MANY) else root / path


@lru_cache(maxsize=64)  # patches come in the order of their folders
def _listing(folder: Path) -> dict[str, Files]:
    """Return names by band by patch of one folder."""
    # by name alone: a file of half a million is opened once it is read
    held: dict[str, Files] = {}
    for path in sorted(folder.iterdir()):
        patch, band = split_name(path.stem)
        if band and path.suffix.lower() in SUFFIXES:
            held.setdefault(patch, {}).setdefault(band, []).append(path.name)
    return held
