"""Scores by encoder and share of the labels come in; what pretraining is worth at each goes out.

A study of labels has one arm, asked with more and more labels beside encoders that learnt nothing.
Its table has a row for each encoder at each share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.studies.analysis import Estimate, arm_means, paired
from jobs.studies.scores import PRETRAINED, Table, row_name


def advantages(table: Table) -> list[Estimate]:
    """Return the pretrained encoder's difference to each control at each share, paired by seed."""
    rows = [(name, *_parts(name)) for name in table.arms]
    pairs = {
        f"{encoder}, {share:g} %": (row_name(PRETRAINED, share / 100), name)
        for name, encoder, share in rows
        if encoder != PRETRAINED
    }
    return paired(table, pairs)


def by_share(table: Table, score: str) -> list[dict[str, Any]]:
    """Return the means over seeds as rows of an evaluation, a label set in place of a protocol."""
    return [
        {
            "protocol": labels.replace("_", " "),
            "encoder": encoder,
            "fraction": share / 100,
            "scores": {score: _interval(one)},
        }
        for column, labels in enumerate(table.labels)
        for one in arm_means(_only(table, column))
        for encoder, share in [_parts(one.name)]
    ]


def _parts(name: str) -> tuple[str, float]:
    encoder, _, share = name.removesuffix(" %").rpartition(", ")
    return encoder, float(share)


def _only(table: Table, column: int) -> Table:
    labels = table.labels[column : column + 1]
    return Table(table.arms, labels, table.seeds, table.grid[:, column : column + 1])


def _interval(one: Estimate) -> dict[str, float]:
    # of a score, which is a share: Student's interval over few seeds does not know that
    low, high = np.clip([one.mean - one.half_width, one.mean + one.half_width], 0, 1)
    return {"value": one.mean, "low": float(low), "high": float(high)}
