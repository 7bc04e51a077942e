"""Georeferencing of a raster: coordinate system, affine transform, and checks of both.

Sources check the grids that ``raster`` reads; nothing here opens a file.
"""

from __future__ import annotations

from dataclasses import dataclass

from preprocess.shards.format import NO_TRANSFORM, Transform

# Tolerated relative difference between a pixel's sides on the ground and in metres of the CRS: the
# 2 % of a polar or national grid are harmless, the 30 % of Web Mercator in Europe are not.
_DISTORTION = 0.05


@dataclass(frozen=True, slots=True)
class Crs:
    """A coordinate system, described by its properties since many have no code."""

    epsg: int = 0  # 0 if the registry has no code, or the file has no coordinate system
    wkt: str = ""  # well-known text if there is no code
    unit_m: float = 0.0  # metres per unit; 0 if units are degrees or unknown

    def __str__(self) -> str:
        """Return the name used in messages."""
        if self.epsg:
            return f"EPSG {self.epsg}"
        named = self.wkt.split('"')[1:2]
        return f"CRS {named[0]}" if named else "no CRS"


@dataclass(frozen=True, slots=True)
class Grid:
    """Position of a raster, or of a window of it."""

    transform: Transform  # affine a b c d e f from the upper left corner, in CRS units
    crs: Crs
    width: int  # pixels in a row of the file
    height: int  # rows of the file
    # scale and offset of each band's values from the tags; (1, 0) without tags
    scales: tuple[tuple[float, float], ...] = ()
    # sides of the central pixel in metres on the ground, and the cosine of their angle; None where
    # CRS metres equal ground metres, zeros where the CRS is undefined
    on_ground: tuple[float, float, float] | None = None

    @property
    def epsg(self) -> int:
        """Code of the coordinate system; 0 without one."""
        return self.crs.epsg

    @property
    def corner(self) -> tuple[Crs, float, float]:
        """CRS, x and y of the upper left corner, which all bands share at any resolution."""
        return self.crs, self.transform[2], self.transform[5]

    @property
    def boa_offset(self) -> int | None:
        """Offset to add to digital numbers by the scale and offset tags; None without tags.

        Reflectance is scale x number + offset: 0.0001 and -0.1 mean that the numbers include 1000.

        Raises:
            ValueError: the scale is not 0.0001, or bands have different offsets.
        """
        if all(pair == (1, 0) for pair in self.scales):
            return None
        if any(abs(scale * 10000 - 1) > 1e-6 for scale, _ in self.scales):
            scale, offset = next(pair for pair in self.scales if pair != (1, 0))
            raise ValueError(
                f"its tags say that values are {scale:g} x number + {offset:g}; export reflectance "
                "x 10000, or remove the tags if they are wrong"
            )
        added = {round(offset / scale) for scale, offset in self.scales}
        if len(added) > 1:
            raise ValueError(f"its tags say that bands have different offsets, {sorted(added)}")
        return added.pop()

    def fault(self, size_m: float, slack: float = 0.0) -> str:
        """Return why pixels are not upright ``size_m`` squares on the ground; empty if they are.

        Without a CRS, transform units are assumed to be metres and pixels of 1 x 1 are accepted.
        Sides may differ from ``size_m`` by the fraction ``slack``.
        """
        known, (a, b, _, d, e, _) = self.crs != Crs(), self.transform
        unit_m = self.crs.unit_m if known else 1.0
        width, height = a * unit_m, -e * unit_m
        if self.transform == NO_TRANSFORM:
            return f"has {self.crs}, but no position in it (no transform)" if known else ""
        if not unit_m:
            return f"lies in {self.crs}, whose units are not metres ({a:g} x {-e:g} a pixel)"
        if b or d:
            return f"is rotated (transform {a:g} {b:g} {d:g} {e:g})"
        if a < 0 or e > 0:
            return f"is {'south-up' if e > 0 else 'mirrored'} (pixels of {a:g} x {e:g})"
        other = max(abs(width / size_m - 1), abs(height / size_m - 1)) > slack + 1e-9
        if other and (known or (a, e) != (1, -1)):
            return f"has pixels of {width:g} x {height:g} m by {self.crs}, not of {size_m:g} m"
        east, south, skew = self.on_ground or (width, height, 0.0)
        if not east:
            return f"lies outside of where {self.crs} is defined"
        if max(abs(east / width - 1), abs(south / height - 1), skew) <= _DISTORTION:
            return ""
        return (
            f"lies in {self.crs}, whose metres are not the ground's: a pixel is {east:.3g} x "
            f"{south:.3g} m there{', skewed' if skew > _DISTORTION else ''}"
        )
