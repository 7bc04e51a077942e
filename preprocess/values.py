"""Numbers of any type and unit come in, uint16 digital numbers with 0 for nodata alone go out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.config import Values
from preprocess.shards.layout import NODATA, SATURATED

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

Numbers = npt.NDArray[np.uint16]


def to_digital_numbers(
    values: npt.NDArray[Any], nodata: Sequence[float | None], unit: Values
) -> Numbers:
    """Return digital numbers as ESA would deliver them: reflectance x 10000, 0 for nodata.

    NaN, 0 and the marks of nodata are nodata. What measures less than 1 is set to 1: a pixel darker
    than black is still a pixel.

    Args:
        values: (bands, height, width) as stored in a file.
        nodata: the mark of every band; None without one.
        unit: of the values.

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
    holes = _holes(values, nodata)
    # doubles: the product of float32 and 10000 would round 0.12345 to another digital number
    numbers = np.where(holes, 0.0, values.astype(np.float64) * _SCALES[unit])
    _refuse_implausible(numbers[~holes], values.dtype.name, unit)
    # rounded half to even, without drift; 65535 stays what it is, saturated
    stored = np.clip(np.rint(numbers), NODATA + 1, SATURATED).astype(np.uint16)
    stored[holes] = NODATA
    return stored


def _holes(values: npt.NDArray[Any], nodata: Sequence[float | None]) -> npt.NDArray[np.bool_]:
    holes = np.asarray((values == 0) | np.isnan(values))
    for band, mark in enumerate(nodata):
        if mark is not None:
            # in the file's own type: a tag of -3.4e38 is compared with float32
            holes[band] |= values[band] == np.asarray(mark).astype(values.dtype)
    return holes


def _refuse_implausible(numbers: npt.NDArray[np.float64], dtype: str, unit: Values) -> None:
    if not numbers.size:
        return
    scale = _SCALES[unit]
    lowest, highest = float(numbers.min()), float(numbers.max())
    if not np.isfinite(lowest + highest):
        raise ValueError("holds infinite numbers; mark them as nodata before the export")
    if lowest < _LEAST:
        raise ValueError(
            f"holds {lowest / scale:g}, which no reflectance is; if it marks nodata say so: "
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
