"""CORINE land cover as BigEarthNet labels it, and the label sets derived from it.

The order of the classes is BigEarthNet's own (by CORINE code, not alphabetical). An alphabetical
order is in use elsewhere, so order always travels as names and mapping is by name.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from preprocess.shards.format import Fractions, FractionSet, Labels, LabelSet

# One row a class of the 43: CORINE level-3 code, name, and the name among the 19; empty: dropped.
# CORINE has a 44th class, 335 (glaciers and perpetual snow), which BigEarthNet never uses.
_CLASSES: tuple[tuple[int, str, str], ...] = (
    (111, "Continuous urban fabric", "Urban fabric"),
    (112, "Discontinuous urban fabric", "Urban fabric"),
    (121, "Industrial or commercial units", "Industrial or commercial units"),
    (122, "Road and rail networks and associated land", ""),
    (123, "Port areas", ""),
    (124, "Airports", ""),
    (131, "Mineral extraction sites", ""),
    (132, "Dump sites", ""),
    (133, "Construction sites", ""),
    (141, "Green urban areas", ""),
    (142, "Sport and leisure facilities", ""),
    (211, "Non-irrigated arable land", "Arable land"),
    (212, "Permanently irrigated land", "Arable land"),
    (213, "Rice fields", "Arable land"),
    (221, "Vineyards", "Permanent crops"),
    (222, "Fruit trees and berry plantations", "Permanent crops"),
    (223, "Olive groves", "Permanent crops"),
    (231, "Pastures", "Pastures"),
    (241, "Annual crops associated with permanent crops", "Permanent crops"),
    (242, "Complex cultivation patterns", "Complex cultivation patterns"),
    (
        243,
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    ),
    (244, "Agro-forestry areas", "Agro-forestry areas"),
    (311, "Broad-leaved forest", "Broad-leaved forest"),
    (312, "Coniferous forest", "Coniferous forest"),
    (313, "Mixed forest", "Mixed forest"),
    (321, "Natural grassland", "Natural grassland and sparsely vegetated areas"),
    (322, "Moors and heathland", "Moors, heathland and sclerophyllous vegetation"),
    (323, "Sclerophyllous vegetation", "Moors, heathland and sclerophyllous vegetation"),
    (324, "Transitional woodland/shrub", "Transitional woodland, shrub"),
    (331, "Beaches, dunes, sands", "Beaches, dunes, sands"),
    (332, "Bare rock", ""),
    (333, "Sparsely vegetated areas", "Natural grassland and sparsely vegetated areas"),
    (334, "Burnt areas", ""),
    (411, "Inland marshes", "Inland wetlands"),
    (412, "Peatbogs", "Inland wetlands"),
    (421, "Salt marshes", "Coastal wetlands"),
    (422, "Salines", "Coastal wetlands"),
    (423, "Intertidal flats", ""),
    (511, "Water courses", "Inland waters"),
    (512, "Water bodies", "Inland waters"),
    (521, "Coastal lagoons", "Marine waters"),
    (522, "Estuaries", "Marine waters"),
    (523, "Sea and ocean", "Marine waters"),
)

CLASSES_43: tuple[str, ...] = tuple(name for _, name, _ in _CLASSES)
CLASSES_19: tuple[str, ...] = tuple(dict.fromkeys(name for _, _, name in _CLASSES if name))
CLC_CODES: dict[str, int] = {name: code for code, name, _ in _CLASSES}
TO_19: dict[str, str] = {name: name_19 for _, name, name_19 in _CLASSES}

# Water is brought by people: CORINE 212; with rice, vineyards, orchards and olive groves 212-223.
IRRIGATION_REGULAR: frozenset[str] = frozenset({"Permanently irrigated land"})
IRRIGATION_EXTENDED: frozenset[str] = frozenset(
    name for name, code in CLC_CODES.items() if code in (212, 213, 221, 222, 223)
)

BIGEARTHNET43 = LabelSet("bigearthnet43", "multi", CLASSES_43)
BIGEARTHNET19 = LabelSet("bigearthnet19", "multi", CLASSES_19)
# Two exclusive classes: a softmax over two columns answers yes or no, and the column of the
# positive class serves average precision.
_YES_NO = ("not irrigated", "irrigated")
REGULAR = LabelSet("irrigation_regular", "single", _YES_NO)
EXTENDED = LabelSet("irrigation_extended", "single", _YES_NO)

# Shares of the ground from a map of level-3 codes. Maps know the 44th class too, and ground that
# their authors left without one: 0 and 999.
_GLACIERS = (335, "Glaciers and perpetual snow")
_UNLABELLED = (0, 999)
_MAPPED = dict(sorted([*((code, name) for name, code in CLC_CODES.items()), _GLACIERS]))
CORINE = FractionSet("corine", (*_MAPPED.values(), "unlabelled"))
IRRIGATION = FractionSet("irrigation", (REGULAR.name, EXTENDED.name))


def shares_of_codes(codes: npt.NDArray[np.uint16]) -> Fractions:
    """Return the shares of the ground that a map of CORINE level-3 codes gives to each class.

    Raises:
        ValueError: a code is none of level 3.
    """
    # by code, as maps hold them; the 19 classes could not be turned back into irrigation
    values, counts = np.unique(codes, return_counts=True)
    share_of = dict(zip(values.tolist(), (counts / codes.size).tolist(), strict=True))
    unknown = share_of.keys() - _MAPPED.keys() - set(_UNLABELLED)
    if unknown:
        raise ValueError(f"code {min(unknown)} is not a CORINE level 3 class")
    unlabelled = sum(share_of.get(code, 0.0) for code in _UNLABELLED)
    shares = {name: share_of.get(code, 0.0) for code, name in _MAPPED.items()}
    irrigated = [sum(shares[name] for name in s) for s in (IRRIGATION_REGULAR, IRRIGATION_EXTENDED)]
    return {
        CORINE.name: np.array([*shares.values(), unlabelled], np.float32),
        IRRIGATION.name: np.array(irrigated, np.float32),
    }


def labels_of_shares(fractions: Fractions, above: float = 0.0) -> Labels:
    """Return both irrigation labellings of a patch: yes, if more than a share of its ground is.

    Ground without any class has no answer.
    """
    if fractions[CORINE.name][-1] == 1:
        return {}
    answers = (_YES_NO[bool(share > above)] for share in fractions[IRRIGATION.name])
    return {name: (answer,) for name, answer in zip(IRRIGATION.classes, answers, strict=True)}


def labels_of_43(names: Iterable[str]) -> Labels:
    """Return all four labellings of a patch from its names among the 43 classes.

    A patch whose every class is dropped from the 19 has no answer in ``bigearthnet19``.

    Raises:
        ValueError: there is no name, or a name is not among the 43.
    """
    present = _known(names, CLASSES_43)
    labels: Labels = {
        BIGEARTHNET43.name: present,
        REGULAR.name: _irrigated(present, IRRIGATION_REGULAR),
        EXTENDED.name: _irrigated(present, IRRIGATION_EXTENDED),
    }
    # several of the 43 fall into one of the 19: each is named once
    reduced = tuple(dict.fromkeys(TO_19[name] for name in present if TO_19[name]))
    return {**labels, BIGEARTHNET19.name: reduced} if reduced else labels


def labels_of_19(names: Iterable[str]) -> Labels:
    """Return the one labelling that names among the 19 classes give; irrigation cannot be told.

    Raises:
        ValueError: there is no name, or a name is not among the 19.
    """
    return {BIGEARTHNET19.name: _known(names, CLASSES_19)}


def _known(names: Iterable[str], classes: tuple[str, ...]) -> tuple[str, ...]:
    present = tuple(names)
    unknown = [name for name in present if name not in classes]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} is not one of the {len(classes)} of BigEarthNet")
    if not present:
        raise ValueError("no class is named")
    return present


def _irrigated(present: tuple[str, ...], irrigated: frozenset[str]) -> tuple[str, ...]:
    return (_YES_NO[bool(irrigated.intersection(present))],)
