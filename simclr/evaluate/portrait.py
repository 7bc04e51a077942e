"""Trials and features come in; what figures of them need goes out, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from simclr.evaluate.calibration import claims, reliability
from simclr.evaluate.features import Features
from simclr.evaluate.ranking import FloatArray
from simclr.evaluate.setting import Setting
from simclr.evaluate.splits import strata_of
from simclr.evaluate.trials import Trial

MAX_POINTS = 1500  # more would cover each other
_MAP_SEED = 0


def confusion(trials: Sequence[Trial], kind: str) -> list[list[int]] | None:
    """Return counts (truth, answer) over all trials of a ``single`` task; None for other kinds."""
    if kind != "single":
        return None
    counts = sum(t.truth.T.astype(np.int64) @ t.answers.predicted for t in trials)
    return np.asarray(counts).tolist()  # type: ignore[no-any-return]


def reliability_of(trials: Sequence[Trial], kind: str) -> dict[str, list[float | None]]:
    """Return the reliability curve of the first trial: null in an empty bin."""
    first = trials[0]
    curve = reliability(claims(first.truth, first.answers.scores, kind))
    return {
        name: _numbers(getattr(curve, name))
        for name in ("edges", "counts", "probability", "frequency")
    }


def feature_map(setting: Setting, features: Features) -> dict[str, Any]:
    """Return test patches on the two main axes of their standardised features.

    Each patch has the number of its class, the rarest if it has several; C where it has none.
    """
    test = setting.splits.by_seed[0].test
    if len(test) > MAX_POINTS:
        drawn = np.random.default_rng(_MAP_SEED).permutation(len(test))[:MAX_POINTS]
        test = np.sort(test[drawn])
    rows = torch.from_numpy(features[test]).double()
    spread = rows.std(dim=0, correction=0)
    rows = (rows - rows.mean(dim=0)) / torch.where(spread > 0, spread, torch.inf)
    left, size, _ = torch.linalg.svd(rows, full_matrices=False)
    points = left[:, :2] * size[:2]
    share = size[:2].square() / size.square().sum().clamp_min(torch.finfo(size.dtype).tiny)
    return {
        "points": points.numpy().round(3).tolist(),
        "classes": _rarest(setting, test).tolist(),
        "variance": share.tolist(),
    }


def _rarest(setting: Setting, rows: Any) -> Any:
    truth = setting.task.truth
    by_rarity = np.append(np.argsort(truth.sum(axis=0), kind="stable"), truth.shape[1])
    return by_rarity[strata_of(truth, np.arange(len(truth)))[rows]]


def _numbers(values: FloatArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
