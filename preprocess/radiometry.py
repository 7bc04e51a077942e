"""Radiometric offset of products, decided once and removed, and conversion of units."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.shards.format import NODATA, SATURATED


class Values(StrEnum):
    """Unit of pixels: ``digital_numbers`` are reflectance x 10000, as ESA delivers them."""

    digital_numbers = "digital_numbers"
    reflectance = "reflectance"


# From processing baseline 04.00 on, ESA adds 1000 to the digital numbers of L2A products so that
# reflectances below 0 survive, stated as BOA_ADD_OFFSET in MTD_MSIL2A.xml (Sentinel-2 Products
# Specification Document, issue 14.9). The baseline decides, never the date: archives were
# reprocessed, so scenes from 2016 have the offset too.
BOA_OFFSET = -1000
FIRST_BASELINE_WITH_OFFSET = 400
# Not ESA's processing: sen2cor run by a third party, with or without an offset. As a number it is
# above 04.00, which has misled many readers.
REPROCESSED = 9999

# In water and shadow, the 1st percentile is below reflectance 0.08 in most bands, usually below
# 0.03; haze raises blue first. With the offset left in, a 04.00 product had 0.088 to 0.102.
_DARK_AT_MOST = 800
# Over-corrected haze makes reflectances negative: down to -0.014 in the same product, where the
# 1st percentile of B02 is -0.005. No measurement is as low as -0.03.
_DARK_AT_LEAST = 700
_DARK_CLASSES = (2, 3, 6)  # SCL: dark area, cloud shadow, water
_MIN_DARK_PIXELS = 100  # fewer are edges and classification errors

DARK_BANDS = ("B02", "B04", "B11", "B12")

Pixels = npt.NDArray[np.uint16]
Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Offset:
    """Offset to be added to digital numbers."""

    value: int  # -1000 or 0
    authority: str  # origin of the value: xml, stac:KEY, tags, name, user


def baseline_of(product: str) -> str:
    """Return the processing baseline in a product's name, such as ``04.00``, or ""."""
    # with the orbit after it: N3812 alone may be a latitude
    found = re.search(r"_N(\d{2})(\d{2})_R\d{3}_", product)
    return f"{found[1]}.{found[2]}" if found else ""


def offset_of(baseline: str) -> int | None:
    """Return the offset for ESA's files of a baseline, or None if the baseline leaves it open."""
    number = int(baseline.replace(".", "") or REPROCESSED)
    if number == REPROCESSED:
        return None
    return BOA_OFFSET if number >= FIRST_BASELINE_WITH_OFFSET else 0


def decide(
    product: str, claims: Mapping[str, int | None], declared: int | None, override: bool = False
) -> Offset:
    """Return the offset of a product; it is never guessed.

    ``claims`` maps each authority to its offset, strongest first; None is no statement. The value
    ``declared`` by the user must agree with them, unless ``override`` is set.

    Raises:
        ValueError: no authority states an offset, or two disagree.
    """
    # in order of trust: the first one is the answer, all others must agree
    stated = [Offset(value, who) for who, value in claims.items() if value is not None]
    if declared is not None:
        stated.append(Offset(declared, "user"))
        if override:
            return stated[-1]
    if not stated:
        raise ValueError(
            f"{product}: neither metadata nor name states the radiometric offset; set "
            f"source.boa_offset={BOA_OFFSET} if it is still in the files (processing baseline "
            "04.00 or later), source.boa_offset=0 if it is not"
        )
    for other in stated[1:]:
        if other.value != stated[0].value:
            if other.authority == "user":
                fix = (
                    "leave source.boa_offset out, or set source.override_offset=true if you know "
                    "better"
                )
            else:
                fix = f"set source.boa_offset={BOA_OFFSET} or 0 and source.override_offset=true"
            raise ValueError(
                f"{product}: {other.authority} says that the offset is {other.value}, "
                f"{stated[0].authority} says {stated[0].value}; {fix}"
            )
    return stated[0]


def harmonise(digital_numbers: Pixels, offset: int) -> Pixels:
    """Return values to store: offset added, 0 only for nodata and 65535 only for saturation."""
    if not offset:
        return digital_numbers
    # signed: uint16 would wrap a pixel of 999 around to 65535, saturated
    signed = digital_numbers.astype(np.int32) + offset
    # 1, not 0: a pixel darker than black is still valid, not a hole
    np.clip(signed, NODATA + 1, SATURATED - 1, out=signed)
    special = (digital_numbers == NODATA) | (digital_numbers == SATURATED)
    return np.where(special, digital_numbers, signed.astype(np.uint16))


def contradiction(offset: int, pixels: Mapping[str, Pixels], classes: Classes | None) -> str:
    """Return how dark pixels contradict an offset; empty if they do not or are inconclusive.

    Bright scenes prove nothing: the 1st percentile of an offset-free desert is 1012 in B02. So
    values too low always count, values too high only in water, shadow and dark areas.
    ``pixels`` are digital numbers by band, at any resolution, and ``classes`` is the scene
    classification or None; all have the same shape.
    """
    known = _first_percents(pixels)
    if offset == BOA_OFFSET and known and min(known.values()) < _DARK_AT_LEAST:
        band = min(known, key=known.__getitem__)
        return (
            f"1 % of {band} is at or below {known[band]}, which {offset} would turn into "
            f"reflectance {(known[band] + offset) / 10000:.3f}: no offset seems to be in the files"
        )
    dark: dict[str, int] = {}
    if not offset and classes is not None:
        dark = _first_percents(pixels, np.isin(classes, _DARK_CLASSES))
    # the median band: haze raises only the visible bands, an offset raises all
    band = sorted(dark, key=dark.__getitem__)[(len(dark) - 1) // 2] if dark else ""
    if band and dark[band] > _DARK_AT_MOST:
        return (
            f"even in water and shadow 99 % of {band} is above {dark[band]}, reflectance "
            f"{dark[band] / 10000:.3f}: an offset seems to be in the files"
        )
    return ""


def _first_percents(
    pixels: Mapping[str, Pixels], where: npt.NDArray[np.bool_] | bool = True
) -> dict[str, int]:
    """Return the 1st percentile of each band; bands with too few pixels are omitted."""
    levels = {}
    for band, values in pixels.items():
        taken = values[(values != NODATA) & where]
        if taken.size >= _MIN_DARK_PIXELS:
            # not the minimum: single pixels may be defects
            levels[band] = int(np.percentile(taken, 1, method="lower"))
    return levels


QUANTIFICATION = 10000  # digital numbers per unit of reflectance
_SCALES = {Values.digital_numbers: 1, Values.reflectance: QUANTIFICATION}
_TYPES = ("uint16", "int16", "uint32", "int32", "float32", "float64")
# Over-corrected haze reaches reflectance -0.1 in single pixels; nodata values such as -9999 or
# -32768 are far lower. Nothing on Earth has -0.2.
_LEAST = -2000
# Half of the pixels above reflectance 2 cannot be snow: sunlit snow reaches 1.3 at most.
_BRIGHTEST_MEDIAN = 20000
# If no pixel exceeds 3 (reflectance 0.0003), fractions were declared as digital numbers.
_DARKEST_MAXIMUM = 3

# In a 04.00 product, 2 % of B02 is below the offset; 10 % cannot be haze.
_MOST_NEGATIVE = 0.1

Numbers = npt.NDArray[np.uint16]

_log = logging.getLogger(__name__)
_negative = Counter[str]()  # of this process


def to_digital_numbers(
    values: npt.NDArray[Any],
    nodata: Sequence[float | None],
    unit: Values,
    scales: Sequence[tuple[float, float]] = (),
) -> Numbers:
    """Return digital numbers as ESA would deliver them: reflectance x 10000, 0 for nodata.

    NaN, 0 and nodata values become 0. Other values below 1 become 1, since a pixel darker than
    black is still valid; a log line counts the negative ones.

    Args:
        values: (bands, height, width) as stored in a file.
        nodata: nodata value of each band; None without one.
        unit: unit of the values.
        scales: scale and offset of each band from the file's tags, applied to reflectances only.

    Raises:
        ValueError: the dtype cannot hold reflectances, a number cannot be one, or all numbers
            indicate the other unit; the message says what to set.
    """
    if values.dtype.name not in _TYPES:
        raise ValueError(
            f"pixels are {values.dtype}, which holds no reflectances; export {', '.join(_TYPES)}"
        )
    plain = values.dtype == np.uint16 and unit == Values.digital_numbers
    if plain and all(mark in (None, NODATA) for mark in nodata):
        return values
    holes = np.asarray((values == 0) | np.isnan(values))
    for band, mark in enumerate(nodata):
        # a tag that the dtype cannot hold, such as -9999 in a uint16 band, marks nothing
        if mark is not None and can_hold(values.dtype, mark):
            # in the file's dtype: a tag of -3.4e38 must be compared as float32
            holes[band] |= values[band] == np.asarray(mark).astype(values.dtype)
    # float64: in float32, 0.12345 x 10000 would round to another digital number
    exact = values.astype(np.float64)
    if unit == Values.reflectance and any(pair != (1, 0) for pair in scales):
        scale, offset = (np.array(part).reshape(-1, 1, 1) for part in zip(*scales, strict=True))
        exact = exact * scale + offset
    numbers = np.where(holes, 0.0, exact * _SCALES[unit])
    _refuse_implausible(numbers[~holes], values.dtype.name, unit)
    _count_negative(numbers[~holes], unit)
    # rounded half to even, hence unbiased; 65535 stays, as saturated
    stored = np.clip(np.rint(numbers), NODATA + 1, SATURATED).astype(np.uint16)
    stored[holes] = NODATA
    return stored


def can_hold(dtype: np.dtype[Any], number: float) -> bool:
    """Return whether a dtype can represent a number; a cast would turn -9999 into 55537."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return limits.min <= number <= limits.max and float(number).is_integer()


def _count_negative(numbers: npt.NDArray[np.float64], unit: Values) -> None:
    """Reject a patch with many negative numbers; log how many have been stored as 1 so far."""
    num_negative = int((numbers < 0).sum())
    if not num_negative:
        return
    share = num_negative / numbers.size
    if share > _MOST_NEGATIVE:
        lowest = float(numbers.min()) / _SCALES[unit]
        raise ValueError(
            f"{share:.0%} of its numbers are negative, down to {lowest:g}; if they mark nodata say "
            f"so: source.nodata={lowest:g}, if an offset was subtracted twice export without it"
        )
    _negative.update(patches=1, pixels=num_negative)
    if str(_negative["patches"]).rstrip("0") == "1":  # 1, 10, 100, ...
        _log.warning(
            "negative reflectances are stored as 1 (0.0001): %d pixels in %d files so far",
            _negative["pixels"],
            _negative["patches"],
        )


def _refuse_implausible(numbers: npt.NDArray[np.float64], dtype: str, unit: Values) -> None:
    if not numbers.size:
        return
    scale = _SCALES[unit]
    lowest, highest = float(numbers.min()), float(numbers.max())
    if not np.isfinite(lowest + highest):
        raise ValueError("holds infinite numbers; mark them as nodata before the export")
    if lowest < _LEAST:
        raise ValueError(
            f"holds {lowest / scale:g}, which is not a reflectance; if it marks nodata, say so: "
            f"source.nodata={lowest / scale:g}"
        )
    if unit == Values.reflectance and np.median(numbers) > _BRIGHTEST_MEDIAN:
        raise ValueError(
            f"half of the numbers are above {np.median(numbers) / scale:g}, which as reflectance "
            "no ground is; set source.values=digital_numbers"
        )
    if unit == Values.digital_numbers and highest <= _DARKEST_MAXIMUM:
        raise ValueError(
            f"no number is above {highest:g} ({dtype}), which as digital numbers is black; set "
            "source.values=reflectance"
        )
    if highest > SATURATED:
        raise ValueError(f"holds {highest / scale:g}, above the {SATURATED / scale:g} that can be")
