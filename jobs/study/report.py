"""A study's scored runs come in; CSV tables, pictures, a page and a verdict in words go out."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.cli.schema import to_yaml
from jobs.config import StudyConfig, StudyName
from jobs.figures.canvas import Page
from jobs.figures.evaluation import draw_fractions
from jobs.run_dir import provenance
from jobs.study.analysis import (
    RELIABLE,
    Estimate,
    Score,
    Stability,
    Table,
    advantages,
    arm_means,
    by_share,
    chance_of_bottom,
    differences,
    lowest_quarter,
    operation_effects,
    read_table,
    stability,
    to_csv,
)
from jobs.study.arms import CURVES, members_of
from jobs.study.bans import DERIVED, FIRST, SCORES_NAME, Bans, couplet_study, derive, judged_table
from jobs.study.figures import draw_couplets, draw_estimates, draw_learning
from jobs.study.learning import SAME_LOSS, Moment, against_scores, collapses, moments_of
from preprocess.shards.atomic_io import write_text
from simclr.augment.operations import BANNED, NINE
from simclr.config_io import to_plain

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
            said += ranking(self.ranks, self.table)
        if self.against:
            said.append(effects(self.against, self.compared))
        if self.operations:
            said.append(effects(self.operations, "Operations in couplets"))
        if self.same_loss and (chosen := against_scores(self.moments, self.means, self.score)):
            said.append(chosen)
        if self.halving:
            return [*said, halved(self.table.seeds)]
        gaps = missing(self.table)
        return [*said, gaps] if gaps else said

    def _on_bans(self) -> list[str]:
        if not self.bans:
            return []
        derived = next((one for one in self.against if one.name == DERIVED), None)
        return pruning(self.bans, derived, self.table.seeds, self.score)


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


PAGE_NAME = "report.html"


def write_study(config: StudyConfig, made_by: Mapping[str, Any] | None = None) -> str:
    """Write tables, pictures and the page of a study; return the verdict and where the page lies.

    A study of bans writes those of its couplets as well.

    Args:
        config: settings.
        made_by: provenance; none takes that of this process.

    Raises:
        ValueError: no run has been scored yet.
    """
    folder, made_by = Path(config.output), made_by or provenance()
    folder.mkdir(parents=True, exist_ok=True)
    first = couplet_study(config) if config.study is StudyName.bans else None
    if first:
        write_study(first, made_by)
    found = findings(config)
    _write_tables(folder, found)
    if config.study in COUPLETS:
        _write_recipe(folder, found)
    page = _page(config, folder, found)
    _add_origin(page, config, made_by)
    return "\n".join([*found.sentences, str(page.write(folder / PAGE_NAME))])


def _write_tables(folder: Path, found: Findings) -> None:
    table = found.table
    scores = [
        Score(arm, labels, seed, float(table.grid[row, column, layer]))
        for row, arm in enumerate(table.arms)
        for column, labels in enumerate(table.labels)
        for layer, seed in enumerate(table.seeds)
    ]
    write_text(folder / SCORES_NAME, to_csv(scores, Score))
    write_text(folder / "arms.csv", to_csv(found.means, Estimate))
    if found.ranks:
        write_text(folder / "stability.csv", to_csv([found.ranks], Stability))
    if found.against:
        write_text(folder / "differences.csv", to_csv(found.against, Estimate))
    if found.chances:
        write_text(folder / "operations.csv", to_csv(found.operations, Estimate))
        write_text(folder / "lowest_quarter.csv", to_csv(found.chances, Chance))


def _write_recipe(folder: Path, found: Findings) -> None:
    """Leave the couplets above the lowest quarter as a recipe of the user's own."""
    lowest = lowest_quarter(found.means)
    left = [name for name in found.table.arms if "+" in name and name not in lowest]
    if left:
        head = "".join(f"# {sentence}\n" for sentence in found.sentences)
        values = to_yaml({"augment": {"preset": "couplets", "operations": [], "couplets": left}})
        write_text(folder / "recipe" / "allowed.yaml", f"# @package _global_\n{head}{values}")


def _page(config: StudyConfig, folder: Path, found: Findings) -> Page:
    page = Page(f"Study: {config.study.value}").text(*found.sentences)
    if config.study in COUPLETS and found.chances:
        _add_couplets(page, folder, found, config.score)
    elif config.study is StudyName.labels:
        rows = by_share(found.table, config.score)
        path = draw_fractions(folder / "shares.png", rows, config.score)
        said = "Means over seeds, of pretraining and of the labels drawn; bands are 95 % intervals."
        page.heading("Score against the share of the labels").picture(path, said)
    else:
        path = draw_estimates(folder / "arms.png", found.means, config.score)
        page.heading("Arms").picture(path, "Mean over label sets and seeds, 95 % intervals.")
    if found.bans:
        _add_bans(page, found.bans, config.bans_from or str(Path(config.output, FIRST)))
    if found.against:
        path = draw_estimates(
            folder / "differences.png", found.against, f"difference in {config.score}"
        )
        page.heading(found.compared)
        page.picture(path, "Paired by seed, 95 % intervals; red: beyond chance after Holm.")
    if found.moments:
        _add_learning(page, folder, found.moments)
    page.heading("Numbers").table(
        ("arm", "mean", "± (95 %)", "seeds"),
        [(one.name, f"{one.mean:.4f}", f"{one.half_width:.4f}", one.seeds) for one in found.means],
    )
    return page.text("These and all other numbers are in the CSV files beside this page.")


def _add_origin(page: Page, config: StudyConfig, made_by: Mapping[str, Any]) -> None:
    """Append what it takes to make the study again."""
    script, *words = made_by["command"]
    verb = "simclr-study" if Path(script).stem == "study" else Path(script).name
    commit, changed = made_by["code"]["commit"], made_by["code"]["changed"]
    page.heading("How it was made")
    page.command(f"cd {shlex.quote(made_by['folder'])}\n{shlex.join([verb, *words])}")
    if commit:
        page.text(f"Commit {commit}{', with changes' if changed else ''}.")
    versions = ", ".join(f"{name} {number}" for name, number in made_by["versions"].items())
    page.text(f"{made_by['time']}, Python {made_by['python']}; {versions}.")
    page.text(f"Seeds {', '.join(map(str, config.seeds))}; all settings:")
    page.command(to_yaml(to_plain(config)))


def _add_couplets(page: Page, folder: Path, found: Findings, score: str) -> None:
    table = found.table
    pairs = table.only([name for name in table.arms if "+" in name])
    seeds = f"{len(table.seeds)} seed{'s' * (len(table.seeds) > 1)}"
    whole = "mean over label sets" if len(table.labels) > 1 else table.labels[0]
    maps = {f"{whole}, {seeds}": arm_means(pairs)}
    for column, labels in enumerate(table.labels if len(table.labels) > 1 else ()):
        one = Table(pairs.arms, (labels,), pairs.seeds, pairs.grid[:, column : column + 1])
        maps[labels.replace("_", " ")] = arm_means(one)
    clear = {one.name for one in found.against if one.excludes_zero}
    path = draw_couplets(folder / "heatmap.png", maps, clear, score)
    said = "Score, and half-width of its 95 % interval; framed: the lowest quarter"
    if found.against:
        said += "; bold on the left: told from none beyond chance"
    page.heading("Couplets").picture(path, f"{said}.")
    if found.operations:
        path = draw_estimates(
            folder / "operations.png", found.operations, "score with it minus without"
        )
        said = "What each operation does to a couplet, against the mean of all operations."
        page.picture(path, said)
    likely = sorted(found.chances, key=lambda one: -one.chance)
    page.heading("The lowest quarter").table(
        ("couplet", "chance to belong there"),
        [(one.arm, f"{one.chance:.2f}") for one in likely if one.chance >= 0.05],
    )


def _add_bans(page: Page, bans: Bans, where: str) -> None:
    chances = chance_of_bottom(bans.table)
    page.heading(f"Couplets of seeds {', '.join(map(str, bans.table.seeds))}")
    page.text(f"Their own report, with every number, is in {where}.")
    page.table(
        ("couplet", "mean", "± (95 %)", "chance of the lowest quarter", "banned", "in 2021"),
        [
            (
                one.name,
                f"{one.mean:.4f}",
                f"{one.half_width:.4f}",
                f"{chances[one.name]:.2f}",
                "banned" if one.name in bans.banned else "",
                "banned" if frozenset(one.name.split("+")) in BANNED else "",
            )
            for one in sorted(arm_means(bans.table), key=lambda one: one.mean)
        ],
    )


def _add_learning(page: Page, folder: Path, moments: list[Moment]) -> None:
    write_text(folder / "curves.csv", to_csv(moments, Moment))
    path = draw_learning(folder / "curves.png", moments)
    said = "Means over seeds; dashed on the left: chance; black on the right: encoders that learnt "
    fallen = collapses(moments)
    page.heading("Loss and probe").text(*filter(None, [fallen]))
    page.picture(path, said + "nothing; crosses: projections had collapsed. Numbers: curves.csv.")


NUM_COUPLETS = math.comb(len(NINE), 2)


def ranking(found: Stability, table: Table) -> list[str]:
    """Say whether the ranking of arms is resolved, and how many seeds would resolve it."""
    sentences = []
    if not math.isnan(found.pearson_labels):
        agree = (
            f"Label sets agree on the arms with Spearman {found.spearman_labels:.2f} and Pearson "
            f"{found.pearson_labels:.2f}"
        )
        reliability = (
            f"as replicates, their mean has reliability {found.reliability_labels:.2f}"
            if found.pearson_labels > 0  # Spearman and Brown have no answer to others
            else "no better than chance"
        )
        sentences.append(f"{agree}; {reliability}.")
    return [*sentences, _seeds(found, len(table.seeds))]


def effects(estimates: Sequence[Estimate], what: str) -> str:
    """Say which effects are beyond chance."""
    tested = [one for one in estimates if not math.isnan(one.p_value)]
    if not tested:
        return f"{what}: one seed says nothing about chance; give three or more."
    clear = [
        f"{one.name} {one.mean:+.3f} ± {one.half_width:.3f}" for one in tested if one.excludes_zero
    ]
    if len(clear) == len(tested):
        return f"{what}: beyond chance are all, {', '.join(clear)}."
    if not clear:
        return f"{what}: not conclusive, none of {len(tested)} differs from 0 beyond chance."
    return (
        f"{what}: beyond chance are {', '.join(clear)}; not the other {len(tested) - len(clear)}."
    )


def pruning(found: Bans, derived: Estimate | None, tested: Sequence[int], score: str) -> list[str]:
    """Say what was banned, on which seeds, and whether it helps on those that had no part in it."""
    table = found.table
    by_chance = len(found.banned) * len(BANNED) / NUM_COUPLETS
    known = (
        f"Bans: seeds {_listed(table.seeds)} put {len(found.banned)} of {len(table.arms)} couplets "
        f"last, {', '.join(found.banned)}; {found.in_2021} of them were banned in 2021, "
        f"{by_chance:.1f} would be by chance."
    )
    return [known, f"Pruning, tested on seeds {_listed(tested)}: {_helps(derived, score)}"]


def missing(table: Table) -> str:
    """Name what has no score."""
    gaps = table.missing
    if not gaps:
        return ""
    more = f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
    return f"Without a score: {'; '.join(gaps[:5])}{more}. The same command makes what is missing."


def halved(seeds: Sequence[int]) -> str:
    """Say what early stopping has done to the numbers."""
    return (
        f"Halving: of the arms left, the lower half was given up after each of {len(seeds)} seeds. "
        "Means of arms given up rest on fewer seeds, and an unlucky first seed may have cost a "
        "good arm: this finds candidates, and ranks nothing."
    )


def _helps(derived: Estimate | None, score: str) -> str:
    if derived is None or derived.seeds == 0:
        return "nothing is known yet; the same command trains and scores what is missing."
    if math.isnan(derived.half_width):
        return "one seed says nothing about chance; give four seeds or more."
    # one comparison, planned before anything was seen: its own interval, without correction
    told = f"{derived.mean:+.3f} ± {derived.half_width:.3f} {score} against all 36 couplets."
    if abs(derived.mean) <= derived.half_width:
        return f"not conclusive, {told}"
    return f"it {'helps' if derived.mean > 0 else 'harms'}, {told}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _seeds(found: Stability, count: int) -> str:
    if math.isnan(found.pearson_seeds):
        return "Not conclusive: with one seed, nobody knows how much of a difference is chance."
    if math.isinf(found.seeds_needed):  # Spearman and Brown have no answer to a negative r
        return f"Not conclusive: {count} seeds agree on the arms no better than chance."
    reliability = found.reliability_seeds
    rank = f"the mean of {count} seeds ranks the arms with reliability {reliability:.2f}"
    if reliability >= RELIABLE:
        return f"Conclusive: {rank}."
    return f"Not conclusive: {rank}; about {found.seeds_needed:.0f} seeds would resolve them."
