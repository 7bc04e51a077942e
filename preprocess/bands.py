"""The Sentinel-2 band table: canonical names, aliases of other tools, wavelengths, resolutions.

Used by sources, shards and the encoder. Aliases are translated on input only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Band:
    """One band of the MultiSpectral Instrument."""

    name: str  # canonical, zero-padded (B02, B8A)
    wavelength_nm: float  # central wavelength on Sentinel-2A in nm (ESA, S2 MSI user guide)
    ground_resolution_m: int  # side of a pixel on the native grid, in metres
    aliases: tuple[str, ...]  # names in SAFE XML and Earth Engine (B2), STAC assets (blue)


BANDS: dict[str, Band] = {
    band.name: band
    for band in (
        Band("B01", 442.7, 60, ("B1", "coastal")),
        Band("B02", 492.4, 10, ("B2", "blue")),
        Band("B03", 559.8, 10, ("B3", "green")),
        Band("B04", 664.6, 10, ("B4", "red")),
        Band("B05", 704.1, 20, ("B5", "rededge1")),
        Band("B06", 740.5, 20, ("B6", "rededge2")),
        Band("B07", 782.8, 20, ("B7", "rededge3")),
        Band("B08", 832.8, 10, ("B8", "nir")),
        Band("B8A", 864.7, 20, ("nir08",)),
        Band("B09", 945.1, 60, ("B9", "nir09")),
        Band("B10", 1373.5, 60, ("cirrus",)),
        Band("B11", 1613.7, 20, ("swir16",)),
        Band("B12", 2202.4, 20, ("swir22",)),
    )
}

# Wavelengths are those of Sentinel-2A; B and C differ by up to 17 nm (B12).
# B10 (cirrus) exists only before atmospheric correction; L2A products do not contain it.
L2A_BANDS: tuple[str, ...] = tuple(name for name in BANDS if name != "B10")

_BY_ALIAS = {
    spelling.lower(): band.name
    for band in BANDS.values()
    for spelling in (band.name, *band.aliases)
}


def canonical_name(name: str) -> str:
    """Return the canonical name of a band in any known spelling.

    Raises:
        ValueError: the spelling is unknown; the message lists the valid names.
    """
    try:
        return _BY_ALIAS[name.strip().lower()]
    except KeyError:
        raise ValueError(f"unknown band {name!r}; valid names: {', '.join(BANDS)}") from None


def canonical_names(names: Iterable[str]) -> list[str]:
    """Return canonical names in the order given.

    Raises:
        ValueError: a spelling is unknown, or two spellings mean the same band.
    """
    # keep the user's order: it becomes the channel order
    canonical = [canonical_name(name) for name in names]
    repeated = sorted({name for name in canonical if canonical.count(name) > 1})
    if repeated:
        raise ValueError(f"band {repeated[0]} is named more than once in {canonical}")
    return canonical


def native_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Group bands by native ground resolution, finest first: ``{"b10": ["B02", ...], ...}``."""
    groups: dict[int, list[str]] = {}
    for name in canonical_names(names):
        groups.setdefault(BANDS[name].ground_resolution_m, []).append(name)
    return {f"b{resolution}": groups[resolution] for resolution in sorted(groups)}
