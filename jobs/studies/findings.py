"""A study's scores and metric records come in; all that is concluded from them goes out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jobs.studies import verdict
from jobs.studies.analysis import (
    Estimate,
    Stability,
    arm_means,
    chance_of_bottom,
    differences,
    operation_effects,
    stability,
)
from jobs.studies.arms import CURVES, members_of
from jobs.studies.bans import DERIVED, Bans, derive, judged_table
from jobs.studies.config import StudyConfig, StudyName
from jobs.studies.learning import SAME_LOSS, Moment, against_scores, moments_of
from jobs.studies.scores import Table, read_table
from jobs.studies.shares import advantages

COUPLETS = (StudyName.augmentation, StudyName.published)


@dataclass(frozen=True, slots=True)
class Chance:
    """How surely a couplet is among the lowest quarter.

    Attributes:
        arm: the couplet.
        chance: share of draws of replicates in which it is.
    """

    arm: str
    chance: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All that is concluded from a table.

    Attributes:
        table: scores.
        means: of arms.
        against: differences to the reference arm, the first; empty with one arm or without it.
        operations: effects of operations in couplets; empty in other studies.
        ranks: how far the ranking can be trusted; none where arms are not ranked.
        chances: of each couplet to be among the lowest quarter; empty in other studies.
        score: which score the table holds.
        halving: whether arms were given up on the way.
        bans: what a first stage has banned; none in other studies.
        moments: what runs have said of themselves; empty in studies without curves.
        same_loss: whether the losses of arms can be compared.
    """

    table: Table
    means: list[Estimate]
    against: list[Estimate]
    operations: list[Estimate]
    ranks: Stability | None
    chances: list[Chance]
    score: str = "f1"
    halving: bool = False
    bans: Bans | None = None
    moments: list[Moment] = field(default_factory=list)
    same_loss: bool = False

    @property
    def compared(self) -> str:
        """What ``against`` compares, in words."""
        return (
            f"Arms against {self.table.arms[0]}"
            if self.ranks
            else "Pretrained against the controls"
        )

    @property
    def sentences(self) -> list[str]:
        """The verdict."""
        said = self._on_bans()
        if self.ranks:
            said += verdict.ranking(self.ranks, self.table)
        if self.against:
            said.append(verdict.effects(self.against, self.compared))
        if self.operations:
            said.append(verdict.effects(self.operations, "Operations in couplets"))
        if self.same_loss and (chosen := against_scores(self.moments, self.means, self.score)):
            said.append(chosen)
        if self.halving:
            return [*said, verdict.halved(self.table.seeds)]
        gaps = verdict.missing(self.table)
        return [*said, gaps] if gaps else said

    def _on_bans(self) -> list[str]:
        if not self.bans:
            return []
        derived = next((one for one in self.against if one.name == DERIVED), None)
        return verdict.pruning(self.bans, derived, self.table.seeds, self.score)


def findings(config: StudyConfig) -> Findings:
    """Return what the runs of a study have shown so far.

    Raises:
        ValueError: no run has been scored yet.
    """
    if config.study is StudyName.bans:
        return replace(conclude(config, judged_table(config)), bans=derive(config))
    found = conclude(config, read_table(config))
    if config.study not in CURVES:
        return found
    return replace(found, moments=moments_of(members_of(config)))


def conclude(config: StudyConfig, table: Table) -> Findings:
    """Return what a table of a study's scores allows to conclude."""
    if config.study is StudyName.labels:
        against = advantages(table)
        return Findings(table, arm_means(table), against, [], None, [], config.score)
    couplets = [name for name in table.arms if "+" in name] if config.study in COUPLETS else []
    pairs = table.only(couplets) if couplets else table
    # a study of couplets alone has no arm that the others could be compared with
    has_reference = len(table.arms) > 1 and "+" not in table.arms[0]
    return Findings(
        table,
        arm_means(table),
        differences(table, table.arms[0]) if has_reference else [],
        operation_effects(pairs) if couplets else [],
        stability(pairs),
        [Chance(*item) for item in chance_of_bottom(pairs).items()] if couplets else [],
        config.score,
        config.halving,
        same_loss=config.study in SAME_LOSS,
    )
