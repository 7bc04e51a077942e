"""A study comes in, the runs that are due go out: all, or those that the scores so far ask for.

Successive halving (Jamieson and Talwalkar 2016) with seeds as its resource: after each seed the
lower half of the arms is given up. An arm keeps its full training; a prefix of it would rank arms
by how fast they start.
"""

from __future__ import annotations

import numpy as np

from jobs.studies.arms import Member, members_of
from jobs.studies.bans import bans_members
from jobs.studies.config import StudyConfig, StudyName
from jobs.studies.scores import scores_of, tabulate

FEWEST = 2  # arms that are always left, the reference among them


def due(config: StudyConfig) -> list[Member]:
    """Return the runs that may be made or have been; those of later rounds wait for scores.

    Raises:
        ValueError: the study cannot be.
    """
    return _members(config, foreseen=False)


def foreseen(config: StudyConfig) -> list[Member]:
    """Return the runs that are due, and for those that will be, others that cost as much.

    Raises:
        ValueError: the study cannot be.
    """
    return _members(config, foreseen=True)


def _members(config: StudyConfig, *, foreseen: bool) -> list[Member]:
    if config.study is StudyName.bans:
        return bans_members(config, foreseen=foreseen)
    members = members_of(config)
    if not config.halving:
        return members
    names = list(dict.fromkeys(member.arm for member in members))
    left, chosen = names, list[Member]()
    for seed in config.seeds:
        chosen += [one for one in members if one.seed == seed and one.arm in left]
        ranked = _ranked(config, chosen, left) or (left if foreseen else [])
        if not ranked:
            break
        # whatever its score, the first arm stays: all differences are taken to it
        others = [name for name in ranked if name != names[0]]
        left = [names[0], *others[: max(FEWEST, len(left) // 2) - 1]]
    return chosen


def _ranked(config: StudyConfig, members: list[Member], arms: list[str]) -> list[str]:
    """Return arms from the best to the worst, or nothing as long as one of their runs has none."""
    scores = scores_of(config, members)
    if len(scores) < len(members) * len(config.tasks):
        return []
    table = tabulate([score for score in scores if score.arm in arms], arms)
    means = np.nanmean(table.grid, axis=(1, 2))
    return [arms[row] for row in np.argsort(-means, kind="stable")]
