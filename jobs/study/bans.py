"""Couplets scored on half of the seeds come in; bans and runs that test them on others go out.

A quarter of the couplets is always the lowest, by chance alone if by nothing else. Seeds that chose
the bans would flatter them, so others judge: half of the seeds derives, the other half tests.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from jobs.config import StudyConfig, StudyName
from jobs.study.analysis import (
    Score,
    Table,
    arm_means,
    found_scores,
    lowest_quarter,
    scores_of,
    tabulate,
)
from jobs.study.arms import (
    Arm,
    Member,
    check_count,
    chosen,
    couplets,
    crossed,
    drawn_from,
    members_of,
    preset_arm,
)
from simclr.augment.operations import BANNED, NINE, allowed_couplets
from simclr.config import require

REFERENCE = "all 36 couplets"
DERIVED = "derived bans"
WAITING = "waiting"  # folder of the stand-in, which is never made
FEWEST = 2  # seeds on either side: one says nothing about chance
FIRST = "couplets"  # folder of the first stage
SCORES_NAME = "scores.csv"


@dataclass(frozen=True, slots=True)
class Bans:
    """What the couplets of some seeds ban.

    Attributes:
        table: scores of the couplets, of the deriving seeds.
        banned: couplets of the lowest quarter, the lowest first.
    """

    table: Table
    banned: tuple[str, ...]

    @property
    def in_2021(self) -> int:
        """How many of them the study of 2021 had banned as well."""
        return sum(frozenset(name.split("+")) in BANNED for name in self.banned)


def couplet_study(config: StudyConfig) -> StudyConfig | None:
    """Return the study that derives the bans, or None if it has been made elsewhere."""
    if config.bans_from:
        return None
    require(
        len(config.seeds) >= 2 * FEWEST,
        f"seeds is {config.seeds}; study=bans derives bans on half of them and tests on the "
        "others: give four or more, seeds=[0,1,2,3,4,5]",
    )
    names = [arm.name for arm in couplets()]
    return replace(
        config,
        study=StudyName.augmentation,
        output=str(Path(config.output, FIRST)),
        # every other one: seeds that are added later change the side of none
        seeds=config.seeds[::2],
        arms=[name for name in names if name in config.arms] or names,
    )


def judging_seeds(config: StudyConfig) -> list[int]:
    """Return the seeds that had no part in the bans.

    Raises:
        ValueError: a seed of the study would test bans that it has helped to derive.
    """
    if not config.bans_from:
        return config.seeds[1::2]
    used = _table_in(config.bans_from).seeds
    both = [seed for seed in config.seeds if seed in used]
    require(
        not both,
        f"seeds is {config.seeds}, but the bans of {config.bans_from} were derived on "
        f"{list(used)}; test them on others: seeds={[max(used) + k for k in (1, 2, 3)]}",
    )
    return config.seeds


def derive(config: StudyConfig) -> Bans | None:
    """Return the bans, or None as long as a couplet that decides has no score.

    Raises:
        ValueError: the study of ``bans_from`` holds none, or lacks some.
    """
    first = couplet_study(config)
    if first is None:
        table = _table_in(config.bans_from)
    else:
        members = members_of(first)
        table = tabulate(scores_of(first, members), [member.arm for member in members])
        scored = table.grid.shape[1:] == (len(first.tasks), len(first.seeds))
        if not scored or table.missing:
            return None
    return Bans(table, tuple(lowest_quarter(arm_means(table))))


def bans_members(config: StudyConfig, *, foreseen: bool = False) -> list[Member]:
    """Return the runs of both stages that can be made; the derived bans wait for the couplets.

    Args:
        config: of the study.
        foreseen: let runs that wait be there as well, with the settings of the reference.

    Raises:
        ValueError: the study cannot be.
    """
    first = couplet_study(config)
    deriving = members_of(first) if first else []
    arms, seeds = judging_arms(config), judging_seeds(config)
    check_count(config, len(deriving) + len(arms) * len(seeds))
    ready = [arm for arm in arms if foreseen or arm.folder != WAITING]
    return [*deriving, *crossed(config, ready, seeds)]


def judging_arms(config: StudyConfig) -> list[Arm]:
    """Return the arms of the second stage; the derived one is a stand-in until bans are known.

    Raises:
        ValueError: an arm is unknown.
    """
    found = derive(config)
    every = list(combinations(NINE, 2))
    arms = [
        drawn_from(REFERENCE, every),
        _without(found) if found else drawn_from(DERIVED, every, WAITING),
        drawn_from("the 27 left in 2021", allowed_couplets()),
        preset_arm("standard"),
        preset_arm("geometric_standard"),
    ]
    wanted = [arm for arm in chosen(config, [*arms, *couplets()]) if arm in arms]
    # whatever is asked for, the first stays: all differences are taken to it
    return [arms[0], *(arm for arm in arms[1:] if arm in wanted)] if wanted else arms


def judged_table(config: StudyConfig) -> Table:
    """Read what the arms of the second stage have reached so far.

    Raises:
        ValueError: none of them has been scored.
    """
    arms, seeds = judging_arms(config), judging_seeds(config)
    members = crossed(config, [arm for arm in arms if arm.folder != WAITING], seeds)
    return tabulate(found_scores(config, members), [arm.name for arm in arms])


def _without(found: Bans) -> Arm:
    banned = [frozenset(name.split("+")) for name in found.banned]
    left = [pair for pair in combinations(NINE, 2) if frozenset(pair) not in banned]
    # bans of other seeds are another arm: their runs must not be taken for one another
    folder = f"{DERIVED} of seeds {' '.join(map(str, found.table.seeds))}"
    return drawn_from(DERIVED, left, folder)


def _table_in(folder: str) -> Table:
    """Read the couplets' scores that a study of augmentation has left."""
    path = Path(folder, SCORES_NAME)
    require(
        path.is_file(),
        f"bans_from is {folder}, where there is no {SCORES_NAME}; give the output of a study of "
        "augmentation",
    )
    with path.open(encoding="utf-8", newline="") as file:
        scores = [
            Score(row["arm"], row["labels"], int(row["seed"]), float(row["value"]))
            for row in csv.DictReader(file)
            if "+" in row["arm"]
        ]
    table = tabulate(scores)
    require(bool(scores), f"bans_from is {folder}, whose {SCORES_NAME} holds no couplet")
    gaps = "; ".join(table.missing[:3])
    require(not gaps, f"bans_from is {folder}, which lacks {gaps}; finish that study first")
    return table
