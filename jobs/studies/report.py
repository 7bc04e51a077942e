"""A study's scored runs come in; CSV tables, pictures, a page and a verdict in words go out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.figures.page import Page
from jobs.figures.studies import draw_couplets, draw_estimates, draw_losses
from jobs.provenance import code_version
from jobs.schema import to_yaml
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
from jobs.studies.arms import members_of
from jobs.studies.bans import (
    DERIVED,
    SCORES_NAME,
    SHARE,
    Bans,
    couplet_study,
    derive,
    judged_table,
    lowest_quarter,
)
from jobs.studies.config import StudyConfig, StudyName
from jobs.studies.scores import Score, Table, read_table, to_csv
from preprocess.shards.atomic import write_text
from simclr.augment.presets import BANNED
from simclr.metrics import METRICS_NAME, read_metrics
from simclr.settings import to_plain

PAGE_NAME = "report.html"
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
        ranks: how far the ranking can be trusted.
        chances: of each couplet to be among the lowest quarter; empty in other studies.
        score: which score the table holds.
        halving: whether arms were given up on the way.
        bans: what a first stage has banned; none in other studies.
    """

    table: Table
    means: list[Estimate]
    against: list[Estimate]
    operations: list[Estimate]
    ranks: Stability
    chances: list[Chance]
    score: str = "f1"
    halving: bool = False
    bans: Bans | None = None

    @property
    def sentences(self) -> list[str]:
        """The verdict."""
        reference = self.table.arms[0]
        said = self._on_bans() + verdict.ranking(self.ranks, self.table)
        if self.against:
            said.append(verdict.effects(self.against, f"Arms against {reference}"))
        if self.operations:
            said.append(verdict.effects(self.operations, "Operations in couplets"))
        if self.halving:
            return [*said, verdict.halved(self.table.seeds)]
        gaps = verdict.missing(self.table)
        return [*said, gaps] if gaps else said

    def _on_bans(self) -> list[str]:
        if not self.bans:
            return []
        derived = next((one for one in self.against if one.name == DERIVED), None)
        return verdict.pruning(self.bans, derived, self.table.seeds, self.score)


def write_study(config: StudyConfig) -> str:
    """Write tables, pictures and the page of a study; return the verdict and where the page lies.

    A study of bans writes those of its couplets as well.

    Raises:
        ValueError: no run has been scored yet.
    """
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if config.study is StudyName.bans:
        first = couplet_study(config)
        if first:
            write_study(first)
        found = replace(conclude(config, judged_table(config)), bans=derive(config))
    else:
        found = conclude(config, read_table(config))
    _write_tables(folder, found)
    if config.study in COUPLETS:
        _write_recipe(folder, found)
    page = _page(config, folder, found).write(folder / PAGE_NAME)
    return "\n".join([*found.sentences, str(page)])


def conclude(config: StudyConfig, table: Table) -> Findings:
    """Return what a table of a study's scores allows to conclude."""
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
        [Chance(*item) for item in chance_of_bottom(pairs, SHARE).items()] if couplets else [],
        config.score,
        config.halving,
    )


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
    write_text(folder / "stability.csv", to_csv([found.ranks], Stability))
    if found.against:
        write_text(folder / "differences.csv", to_csv(found.against, Estimate))
    if found.chances:
        write_text(folder / "operations.csv", to_csv(found.operations, Estimate))
        write_text(folder / "lowest_quarter.csv", to_csv(found.chances, Chance))


def _write_recipe(folder: Path, found: Findings) -> None:
    """Leave the couplets above the lowest quarter as a recipe of the user's own."""
    lowest = lowest_quarter(found.table)
    left = [name for name in found.table.arms if "+" in name and name not in lowest]
    if left:
        head = "".join(f"# {sentence}\n" for sentence in found.sentences)
        values = to_yaml({"augment": {"preset": "couplets", "operations": [], "couplets": left}})
        write_text(folder / "recipe" / "allowed.yaml", f"# @package _global_\n{head}{values}")


def _page(config: StudyConfig, folder: Path, found: Findings) -> Page:
    page = Page(f"Study: {config.study.value}").text(*found.sentences)
    if config.study in COUPLETS and found.chances:
        _add_couplets(page, folder, found, config.score)
    else:
        path = draw_estimates(folder / "arms.png", found.means, config.score)
        page.heading("Arms").picture(path, "Mean over label sets and seeds, 95 % intervals.")
    if found.bans:
        _add_bans(page, found.bans)
    if found.against:
        path = draw_estimates(
            folder / "differences.png", found.against, f"difference in {config.score}"
        )
        page.heading(f"Against {found.table.arms[0]}")
        page.picture(path, "Paired by seed, 95 % intervals; red: beyond chance after Holm.")
    _add_losses(page, config, folder)
    page.heading("Numbers").table(
        ("arm", "mean", "± (95 %)", "seeds"),
        [(one.name, f"{one.mean:.4f}", f"{one.half_width:.4f}", one.seeds) for one in found.means],
    )
    page.text("The same in scores.csv, arms.csv and stability.csv beside this page.")
    page.heading("How it was made").command(" ".join(sys.argv))
    version = code_version(Path(__file__).parent)
    return page.text(f"commit {version['commit']}").command(to_yaml(to_plain(config)))


def _add_couplets(page: Page, folder: Path, found: Findings, score: str) -> None:
    table = found.table
    pairs = table.only([name for name in table.arms if "+" in name])
    seeds = f"{len(table.seeds)} seed{'s' * (len(table.seeds) > 1)}"
    whole = "mean over label sets" if len(table.labels) > 1 else table.labels[0]
    maps = {f"{whole}, {seeds}": arm_means(pairs)}
    for column, labels in enumerate(table.labels if len(table.labels) > 1 else ()):
        one = Table(pairs.arms, (labels,), pairs.seeds, pairs.grid[:, column : column + 1])
        maps[labels] = arm_means(one)
    clear = {one.name for one in found.against if one.excludes_zero}
    path = draw_couplets(folder / "heatmap.png", maps, clear, score)
    told = "; bold: told from none beyond chance" if found.against else ""
    page.heading("Couplets").picture(path, f"Score, and half-width of its 95 % interval{told}.")
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


def _add_bans(page: Page, bans: Bans) -> None:
    chances = chance_of_bottom(bans.table, SHARE)
    page.heading(f"Couplets of seeds {', '.join(map(str, bans.table.seeds))}")
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


def _add_losses(page: Page, config: StudyConfig, folder: Path) -> None:
    if config.study in (*COUPLETS, StudyName.bans, StudyName.labels):
        return
    first = {
        member.arm: read_metrics(path)
        for member in members_of(config)
        if member.seed == config.seeds[0]
        and (path := Path(member.run.run_dir, METRICS_NAME)).is_file()
    }
    curves = {name: records for name, records in first.items() if records}
    if curves:
        path = draw_losses(folder / "losses.png", curves)
        page.heading("Losses").picture(path, f"Seed {config.seeds[0]}; compare arms by score.")
