"""The report of a study: what may be concluded, tables, pictures, one page, and a recipe.

Called by simclr-study when its runs are scored, and by ``study=published``. Every number on the
page is in a CSV file beside it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jobs.config import StudyConfig, StudyName
from jobs.figures.canvas import COLORS, Axes, Page, canvas
from jobs.figures.charts import draw_fractions
from jobs.run_dir import provenance, to_yaml
from jobs.study.analysis import (
    RELIABLE,
    Array,
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
from jobs.study.arms import CURVES, runs_of
from jobs.study.curves import (
    SAME_LOSS,
    CurvePoint,
    collapses,
    draw_curves,
    loss_beside_score,
    read_curves,
)
from preprocess.shards.atomic_io import write_text
from simclr.config_io import to_plain

PAGE_NAME = "report.html"
COUPLET_STUDIES = (StudyName.augmentation, StudyName.published)
# The heat map is a triangle: each pair of the nine operations once.
_ROWS = ("brightness", "contrast", "gain", "speckle", "flip", "rotation", "shift", "zoom")
_COLUMNS = ("blur", *_ROWS[:-1])
_PALE = "#444444"  # still readable on the darkest green


@dataclass(frozen=True, slots=True)
class Chance:
    """How surely a couplet is among the lowest quarter.

    Attributes:
        arm: the couplet.
        chance: share of the bootstrap draws of replicates in which it is.
    """

    arm: str
    chance: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All that is concluded from a table of scores.

    Attributes:
        table: scores.
        score: their name.
        means: of arms.
        against: differences to the reference arm, the first; empty with one arm or without it.
        operations: effects of operations in couplets; empty in other studies.
        ranks: how far the ranking can be trusted; None where arms are not ranked.
        chances: of each couplet to be among the lowest quarter; empty in other studies.
        curves: metric records of the runs; empty in studies without curves.
        same_loss: whether the losses of arms can be compared.
    """

    table: Table
    score: str
    means: list[Estimate]
    against: list[Estimate]
    operations: list[Estimate] = field(default_factory=list)
    ranks: Stability | None = None
    chances: list[Chance] = field(default_factory=list)
    curves: list[CurvePoint] = field(default_factory=list)
    same_loss: bool = False

    @property
    def compared(self) -> str:
        """Heading of the differences."""
        if self.ranks:
            return f"Arms against {self.table.arms[0]}"
        return "Pretrained against the controls"

    @property
    def sentences(self) -> list[str]:
        """The conclusions, one sentence each."""
        found = ranking_verdict(self.ranks, len(self.table.seeds)) if self.ranks else []
        if self.against:
            found.append(effects_verdict(self.against, self.compared))
        if self.operations:
            found.append(effects_verdict(self.operations, "Operations in couplets"))
        if self.same_loss:
            found.append(loss_beside_score(self.curves, self.means, self.score))
        if gaps := self.table.missing:
            more = f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
            found.append(
                f"Without a score: {'; '.join(gaps[:5])}{more}. The same command makes what is "
                "missing."
            )
        return [sentence for sentence in found if sentence]


def conclude(config: StudyConfig, table: Table) -> Findings:
    """Return what a table of a study's scores allows to conclude."""
    if config.study is StudyName.labels:
        return Findings(table, config.score, arm_means(table), advantages(table))
    couplets = [name for name in table.arms if "+" in name]
    couplets = couplets if config.study in COUPLET_STUDIES else []
    ranked = table.only(couplets) if couplets else table
    # a study of couplets alone has no arm that the others could be compared with
    has_reference = len(table.arms) > 1 and "+" not in table.arms[0]
    return Findings(
        table,
        config.score,
        arm_means(table),
        differences(table, table.arms[0]) if has_reference else [],
        operation_effects(ranked) if couplets else [],
        stability(ranked),
        [Chance(*item) for item in chance_of_bottom(ranked).items()] if couplets else [],
        read_curves(runs_of(config)) if config.study in CURVES else [],
        config.study in SAME_LOSS,
    )


def write_study(config: StudyConfig, made_by: Mapping[str, Any] | None = None) -> str:
    """Write tables, pictures and the page of a study; return the conclusions and the page's path.

    Args:
        config: settings.
        made_by: provenance; None takes that of this process.

    Raises:
        ValueError: no run has been scored yet.
    """
    found = conclude(config, read_table(config))
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tables(folder, found)
    if config.study in COUPLET_STUDIES:
        _write_recipe(folder, found)
    page = _page(config, folder, found)
    _add_origin(page, config, made_by or provenance())
    return "\n".join([*found.sentences, str(page.write(folder / PAGE_NAME))])


def _write_tables(folder: Path, found: Findings) -> None:
    table = found.table
    scores = [
        Score(arm, labels, seed, float(table.grid[row, column, layer]))
        for row, arm in enumerate(table.arms)
        for column, labels in enumerate(table.labels)
        for layer, seed in enumerate(table.seeds)
    ]
    write_text(folder / "scores.csv", to_csv(scores, Score))
    write_text(folder / "arms.csv", to_csv(found.means, Estimate))
    if found.ranks:
        write_text(folder / "stability.csv", to_csv([found.ranks], Stability))
    if found.against:
        write_text(folder / "differences.csv", to_csv(found.against, Estimate))
    if found.curves:
        write_text(folder / "curves.csv", to_csv(found.curves, CurvePoint))
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
    if found.chances:
        _add_couplets(page, folder, found)
    elif config.study is StudyName.labels:
        path = draw_fractions(
            folder / "shares.png", by_share(found.table, config.score), config.score
        )
        caption = "Means over seeds of pretraining and of the labels drawn; bands: 95 % intervals."
        page.heading("Score against the share of the labels").picture(path, caption)
    else:
        path = draw_estimates(folder / "arms.png", found.means, config.score)
        page.heading("Arms").picture(path, "Mean over label sets and seeds, 95 % intervals.")
    if found.against:
        label = f"difference in {config.score}"
        path = draw_estimates(folder / "differences.png", found.against, label)
        caption = "Paired by seed, 95 % intervals; red: beyond chance after Holm."
        page.heading(found.compared).picture(path, caption)
    if found.curves:
        path = draw_curves(folder / "curves.png", found.curves)
        caption = (
            "Means over seeds; dashed on the left: chance; black on the right: untrained encoders; "
            "crosses: projections had collapsed. Numbers: curves.csv."
        )
        page.heading("Loss and probe").text(*filter(None, [collapses(found.curves)]))
        page.picture(path, caption)
    page.heading("Numbers").table(
        ("arm", "mean", "± (95 %)", "seeds"),
        [(one.name, f"{one.mean:.4f}", f"{one.half_width:.4f}", one.seeds) for one in found.means],
    )
    return page.text("These and all other numbers are in the CSV files beside this page.")


def _add_origin(page: Page, config: StudyConfig, made_by: Mapping[str, Any]) -> None:
    """Append what it takes to make the study again."""
    script, *words = made_by["command"]
    program = "simclr-study" if Path(script).stem == "study" else Path(script).name
    commit, changed = made_by["code"]["commit"], made_by["code"]["changed"]
    page.heading("How it was made")
    page.command(f"cd {shlex.quote(made_by['folder'])}\n{shlex.join([program, *words])}")
    if commit:
        page.text(f"Commit {commit}{', with changes' if changed else ''}.")
    versions = ", ".join(f"{name} {number}" for name, number in made_by["versions"].items())
    page.text(f"{made_by['time']}, Python {made_by['python']}; {versions}.")
    page.text(f"Seeds {', '.join(map(str, config.seeds))}; all settings:")
    page.command(to_yaml(to_plain(config)))


def _add_couplets(page: Page, folder: Path, found: Findings) -> None:
    table = found.table
    pairs = table.only([name for name in table.arms if "+" in name])
    seeds = f"{len(table.seeds)} seed{'s' * (len(table.seeds) > 1)}"
    whole = "mean over label sets" if len(table.labels) > 1 else table.labels[0]
    maps = {f"{whole}, {seeds}": arm_means(pairs)}
    for column, labels in enumerate(table.labels if len(table.labels) > 1 else ()):
        maps[labels.replace("_", " ")] = arm_means(pairs.of_labels(column))
    clear = {one.name for one in found.against if one.excludes_zero}
    path = draw_couplets(folder / "heatmap.png", maps, clear, found.score)
    caption = "Score, and half-width of its 95 % interval; framed: the lowest quarter"
    if found.against:
        caption += "; bold on the left: told from none beyond chance"
    page.heading("Couplets").picture(path, f"{caption}.")
    if found.operations:
        path = draw_estimates(
            folder / "operations.png", found.operations, "score with it minus without"
        )
        caption = "What each operation does to a couplet, against the mean of all operations."
        page.picture(path, caption)
    likely = sorted(found.chances, key=lambda one: -one.chance)
    page.heading("The lowest quarter").table(
        ("couplet", "chance to belong there"),
        [(one.arm, f"{one.chance:.2f}") for one in likely if one.chance >= 0.05],
    )


def draw_couplets(
    path: Path, maps: Mapping[str, Sequence[Estimate]], clear: set[str], score: str
) -> Path:
    """Draw a triangle of couplets for each title; the lowest quarter of each is framed.

    Args:
        path: PNG.
        maps: title to estimates, those of couplets are drawn.
        clear: couplets of the first map that differ from the reference beyond chance, in bold.
        score: what is shown.
    """
    values = [one.mean for some in maps.values() for one in some if "+" in one.name]
    low, high = np.nanmin(values), np.nanmax(values)
    with canvas(path, 6.2 * len(maps), 5.8) as figure:
        panels = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, (title, estimates) in zip(panels, maps.items(), strict=True):
            bold = clear if axes is panels[0] else set()  # of the mean, not of one label set
            image = _triangle(axes, estimates, (float(low), float(high)), bold)
            _frame(axes, lowest_quarter(estimates))
            axes.set_title(title)
        figure.colorbar(image, ax=panels, shrink=0.7, label=score)
    return path


def draw_estimates(path: Path, estimates: Sequence[Estimate], label: str) -> Path:
    """Draw means with their intervals, in the order of the table; a line where 0 matters."""
    with canvas(path, 7.5, 1.2 + 0.28 * len(estimates)) as figure:
        axes = figure.subplots()
        for row, one in enumerate(estimates):
            half = 0 if math.isnan(one.half_width) else one.half_width
            color = COLORS[1] if one.excludes_zero else COLORS[0]
            axes.errorbar(one.mean, row, xerr=half, fmt="o", color=color, capsize=3, markersize=4)
        axes.set_yticks(range(len(estimates)), [one.name for one in estimates])
        axes.set_ylim(len(estimates) - 0.4, -0.6)  # downwards, as in the tables
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        if tests := sum(not math.isnan(one.p_value) for one in estimates):
            axes.axvline(0, color=COLORS[6], linewidth=1)
            # of many intervals some leave 0 out by chance: the colour counts, not the interval
            axes.set_title(f"red: beyond chance, corrected for {tests} tests", fontsize=10)
    return path


def _triangle(
    axes: Axes, estimates: Sequence[Estimate], limits: tuple[float, float], clear: set[str]
) -> Any:
    cells = {frozenset(one.name.split("+")): one for one in estimates if "+" in one.name}
    grid: Array = np.full((len(_ROWS), len(_COLUMNS)), np.nan)
    for row, one in enumerate(_ROWS):
        for column, other in enumerate(_COLUMNS[: row + 1]):
            cell = cells.get(frozenset((one, other)))
            if cell is None:
                continue
            grid[row, column] = cell.mean
            style: dict[str, Any] = (
                {"color": "black", "weight": "bold"} if cell.name in clear else {"color": _PALE}
            )
            text = f"{cell.mean:.3f}"
            if not math.isnan(cell.half_width):
                text += f"\n±{cell.half_width:.3f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, **style)
    image = axes.imshow(grid, cmap="YlGn", vmin=limits[0], vmax=limits[1], alpha=0.55)
    axes.set_xticks(range(len(_COLUMNS)), _COLUMNS, rotation=40, ha="right")
    axes.set_yticks(range(len(_ROWS)), _ROWS)
    axes.spines[:].set_visible(False)
    return image


def _frame(axes: Axes, couplets: Sequence[str]) -> None:
    """Draw a frame around the cells of some couplets."""
    side = 0.46  # of a cell that is 1 wide: neighbours keep a frame each
    for name in couplets:
        column, below = sorted(("blur", *_ROWS).index(one) for one in name.split("+"))
        row = below - 1  # rows begin with the second operation
        across = [column + side * sign for sign in (-1, 1, 1, -1, -1)]
        down = [row + side * sign for sign in (-1, -1, 1, 1, -1)]
        axes.plot(across, down, color=COLORS[1], linewidth=1.5)


def ranking_verdict(found: Stability, seeds: int) -> list[str]:
    """Return whether the ranking of arms is resolved, and how many seeds would resolve it."""
    sentences = []
    if not math.isnan(found.pearson_labels):
        reliability = (
            f"as replicates, their mean has reliability {found.reliability_labels:.2f}"
            if found.pearson_labels > 0  # Spearman-Brown does not hold for others
            else "no better than chance"
        )
        sentences.append(
            f"Label sets agree on the arms with Spearman {found.spearman_labels:.2f} and Pearson "
            f"{found.pearson_labels:.2f}; {reliability}."
        )
    if math.isnan(found.pearson_seeds):
        verdict = "Not conclusive: one seed cannot tell a difference from chance."
    elif math.isinf(found.seeds_needed):
        verdict = f"Not conclusive: {seeds} seeds agree on the arms no better than chance."
    else:
        seeds_agree = found.reliability_seeds
        rank = f"the mean of {seeds} seeds ranks the arms with reliability {seeds_agree:.2f}"
        more = f"; about {found.seeds_needed:.0f} seeds would resolve them"
        verdict = (
            f"Conclusive: {rank}." if seeds_agree >= RELIABLE else f"Not conclusive: {rank}{more}."
        )
    return [*sentences, verdict]


def effects_verdict(estimates: Sequence[Estimate], what: str) -> str:
    """Return which effects are beyond chance."""
    tested = [one for one in estimates if not math.isnan(one.p_value)]
    clear = [
        f"{one.name} {one.mean:+.3f} ± {one.half_width:.3f}" for one in tested if one.excludes_zero
    ]
    if not tested:
        return f"{what}: one seed cannot tell them from chance; give three or more."
    if not clear:
        return f"{what}: not conclusive, none of {len(tested)} differs from 0 beyond chance."
    others = len(tested) - len(clear)
    rest = f"; the other {others} {'are' if others > 1 else 'is'} not" if others else ""
    return f"{what}: beyond chance are {', '.join(clear)}{rest}."
