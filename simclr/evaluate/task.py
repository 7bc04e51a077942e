"""A corpus and the name of a label set come in; the labelled samples and their truth go out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.shards import UNKNOWN_LABEL, LabelSet
from simclr.corpus import Corpus
from simclr.evaluate.scores import BoolArray

Texts = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of N labelled samples, in the order of their corpus.

    Attributes:
        name: of the label set.
        kind: ``single``, ``binary`` or ``multi``, see ``simclr.evaluate.scores.SCORES``.
        classes: C class names; of a binary task the yes alone, which is its second class.
        truth: (N, C).
        ids: (N,) unique within a source, here preceded by its name.
        places: (N,) ground cell, empty where unknown.
        tiles: (N,) MGRS tile, empty where unknown.
        given_splits: (N,) split that the shards carry, empty where none.
        num_unlabelled: samples of the shards that have no answer in this label set.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    truth: BoolArray
    ids: Texts
    places: Texts
    tiles: Texts
    given_splits: Texts
    num_unlabelled: int


def open_task(corpus: Corpus, name: str) -> Task:
    """Read a label set, and leave only its labelled samples in the corpus.

    Raises:
        ValueError: there is no such label set, nothing is labelled, all labels are the same, or
            a row is not what the kind of the label set allows.
    """
    label_set, labels = corpus.label_set(name), corpus.labels(name)
    known = ~(labels == UNKNOWN_LABEL).all(axis=1)
    if not known.any():
        raise ValueError(f"none of the {len(labels)} patches has an answer in label set {name!r}")
    _check_labels(label_set, labels[known])
    corpus.select(np.flatnonzero(known))
    kind, classes, truth = _as_asked(label_set, labels[known].astype(bool))
    sources = np.array(corpus.sources)[corpus.source]
    return Task(
        name,
        kind,
        classes,
        truth,
        ids=np.char.add(np.char.add(sources, "/"), corpus.index("id")),
        places=corpus.index("place"),
        tiles=corpus.index("tile"),
        given_splits=corpus.index("split"),
        num_unlabelled=int((~known).sum()),
    )


def _check_labels(label_set: LabelSet, labels: npt.NDArray[np.uint8]) -> None:
    if labels.max() > 1:
        raise ValueError(
            f"label set {label_set.name!r} holds {labels.max()}; a labelled patch has 0 or 1 for "
            "every class, an unlabelled one 255 for all"
        )
    if label_set.kind == "single" and (labels.sum(axis=1) != 1).any():
        raise ValueError(
            f"label set {label_set.name!r} is of kind single, but "
            f"{int((labels.sum(axis=1) != 1).sum())} patches have no class or several"
        )
    if (labels == labels[0]).all():
        present = [c for c, one in zip(label_set.classes, labels[0], strict=True) if one]
        raise ValueError(
            f"all {len(labels)} labelled patches are {', '.join(present) or 'without a class'}; "
            f"label set {label_set.name!r} needs two different answers to be a task"
        )


def _as_asked(label_set: LabelSet, truth: BoolArray) -> tuple[str, tuple[str, ...], BoolArray]:
    """Return kind, classes and truth; two exclusive classes become one yes or no."""
    if label_set.kind == "single" and len(label_set.classes) == 2:
        return "binary", label_set.classes[1:], truth[:, 1:]
    if label_set.kind == "multi" and len(label_set.classes) == 1:
        return "binary", label_set.classes, truth
    return label_set.kind, label_set.classes, truth
