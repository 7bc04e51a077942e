"""A study's scored runs come in; CSV tables, pictures, a page and a verdict in words go out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.figures.charts import draw_fractions
from jobs.figures.page import Page
from jobs.figures.studies import draw_couplets, draw_estimates, draw_learning
from jobs.provenance import provenance
from jobs.schema import to_yaml
from jobs.studies.analysis import (
    Estimate,
    Stability,
    arm_means,
    chance_of_bottom,
    lowest_quarter,
)
from jobs.studies.bans import FIRST, SCORES_NAME, Bans, couplet_study
from jobs.studies.config import StudyConfig, StudyName
from jobs.studies.findings import COUPLETS, Chance, Findings, findings
from jobs.studies.learning import Moment, collapses
from jobs.studies.scores import Score, Table, to_csv
from jobs.studies.shares import by_share
from preprocess.shards.atomic import write_text
from simclr.augment.presets import BANNED
from simclr.settings import to_plain

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
