"""The radiometric offset of products, decided once and removed, and the conversion of units."""

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
    """What pixels count: ``digital_numbers`` are reflectance x 10000, as ESA delivers them."""

    digital_numbers = "digital_numbers"
    reflectance = "reflectance"


# From processing baseline 04.00 on, ESA adds 1000 to the digital numbers of L2A products so that
# reflectances below 0 survive, and says so as BOA_ADD_OFFSET in MTD_MSIL2A.xml (Sentinel-2 Products
# Specification Document, issue 14.9). The baseline decides, never the date: archives were
# reprocessed, so scenes of 2016 carry the offset too.
BOA_OFFSET = -1000
FIRST_BASELINE_WITH_OFFSET = 400
# Not ESA's processing: sen2cor run by somebody else, with or without an offset. As a number it is
# above 04.00, which has misled many a reader.
REPROCESSED = 9999

# Of water and shadow, 1 % is darker than reflectance 0.08 in most bands: below 0.03 is usual, haze
# lifts blue first. With the offset left in, 0.088 to 0.102 were seen in a 04.00 product.
_DARK_AT_MOST = 800
# Over-corrected haze makes reflectances negative: down to -0.014 in the same product, 1 % of B02
# at -0.005. Nothing measured reads -0.03.
_DARK_AT_LEAST = 700
_DARK_CLASSES = (2, 3, 6)  # SCL: dark area, cloud shadow, water
_MIN_DARK_PIXELS = 100  # fewer are edges and errors of the classification

DARK_BANDS = ("B02", "B04", "B11", "B12")

Pixels = npt.NDArray[np.uint16]
Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Offset:
    """What must be added to digital numbers."""

    value: int  # -1000, or 0
    authority: str  # who said so: xml, stac, name, user


def baseline_of(product: str) -> str:
    """Return the processing baseline in a product's name, ``04.00``, or nothing."""
    found = re.search(r"_N(\d{2})(\d{2})_", product)
    return f"{found[1]}.{found[2]}" if found else ""


def offset_of(baseline: str) -> int | None:
    """Return the offset that ESA's files of a baseline need, None if the baseline does not tell."""
    number = int(baseline.replace(".", "") or REPROCESSED)
    if number == REPROCESSED:
        return None
    return BOA_OFFSET if number >= FIRST_BASELINE_WITH_OFFSET else 0


def decide(
    product: str, claims: Mapping[str, int | None], declared: int | None, override: bool = False
) -> Offset:
    """Return the offset of a product; nothing is ever guessed.

    ``claims`` holds what each authority says, strongest first; None says nothing. What the user
    declares must agree with them, or override them.

    Raises:
        ValueError: nobody says anything, or two say different things.
    """
    # in the order of trust; the first one is the answer, all others must agree
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
    """Return stored values: offset added, 0 kept for nodata and 65535 for saturated alone."""
    if not offset:
        return digital_numbers
    # signed: uint16 would wrap a pixel of 999 around to 65,535, saturated
    signed = digital_numbers.astype(np.int32) + offset
    # 1, not 0: a pixel darker than black is still a pixel, not a hole
    np.clip(signed, NODATA + 1, SATURATED - 1, out=signed)
    special = (digital_numbers == NODATA) | (digital_numbers == SATURATED)
    return np.where(special, digital_numbers, signed.astype(np.uint16))


def contradiction(offset: int, pixels: Mapping[str, Pixels], classes: Classes | None) -> str:
    """Return how dark pixels contradict an offset; empty if they do not, or cannot tell.

    Bright scenes prove nothing: the darkest per cent of an offset-free desert reads 1012 in B02.
    So too low a value always counts, too high a one only in water, shadow and dark areas.
    ``pixels`` are digital numbers by band, of any coarseness, and ``classes`` the scene
    classification, if there is one, all of one shape.
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
    # the middle band: haze alone lifts the visible ones, an offset lifts all
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
    """Return the value that 1 % of the pixels of a band do not exceed; nothing for few pixels."""
    levels = {}
    for band, values in pixels.items():
        taken = values[(values != NODATA) & where]
        if taken.size >= _MIN_DARK_PIXELS:
            # the first per cent, not the minimum: single pixels are defects
            levels[band] = int(np.percentile(taken, 1, method="lower"))
    return levels


QUANTIFICATION = 10000  # digital numbers per unit of reflectance
_SCALES = {Values.digital_numbers: 1, Values.reflectance: QUANTIFICATION}
_TYPES = ("uint16", "int16", "uint32", "int32", "float32", "float64")
# Over-corrected haze reads down to reflectance -0.1 in single pixels; marks of nodata, -9999 or
# -32768, lie far below. Nothing on Earth reads -0.2.
_LEAST = -2000
# Half of the pixels above reflectance 2 is no snow field: sunlit snow reads 1.3 at most.
_BRIGHTEST_MEDIAN = 20000
# No pixel above reflectance 0.0003 is no night: these are fractions taken for digital numbers.
_DARKEST_MAXIMUM = 3

# Of a 04.00 product 2 % of B02 lies below the offset; a tenth is no haze.
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

    NaN, 0 and the marks of nodata are nodata. What measures less than 1 is set to 1: a pixel darker
    than black is still a pixel; a log line counts the negative ones.

    Args:
        values: (bands, height, width) as stored in a file.
        nodata: the mark of every band; None without one.
        unit: of the values.
        scales: scale and offset of every band by the file's tags, which reflectances are read by.

    Raises:
        ValueError: the type cannot hold reflectances, a number cannot be one, or all of them speak
            for the other unit; the message says what to set.
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
        # a tag that the type cannot hold, such as -9999 of a band of uint16, marks nothing
        if mark is not None and can_hold(values.dtype, mark):
            # in the file's own type: a tag of -3.4e38 is compared with float32
            holes[band] |= values[band] == np.asarray(mark).astype(values.dtype)
    # doubles: the product of float32 and 10000 would round 0.12345 to another digital number
    exact = values.astype(np.float64)
    if unit == Values.reflectance and any(pair != (1, 0) for pair in scales):
        scale, offset = (np.array(part).reshape(-1, 1, 1) for part in zip(*scales, strict=True))
        exact = exact * scale + offset
    numbers = np.where(holes, 0.0, exact * _SCALES[unit])
    _refuse_implausible(numbers[~holes], values.dtype.name, unit)
    _count_negative(numbers[~holes], unit)
    # rounded half to even, without drift; 65535 stays what it is, saturated
    stored = np.clip(np.rint(numbers), NODATA + 1, SATURATED).astype(np.uint16)
    stored[holes] = NODATA
    return stored


def can_hold(dtype: np.dtype[Any], number: float) -> bool:
    """Say whether pixels of a type can be a number; a cast would turn -9999 into 55537."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return limits.min <= number <= limits.max and float(number).is_integer()


def _count_negative(numbers: npt.NDArray[np.float64], unit: Values) -> None:
    """Refuse a patch of many negative numbers, and log how many are stored as 1 so far."""
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
