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
from scipy import stats

from jobs.figures.canvas import Page, draw_fractions, plain
from jobs.run_dir import provenance, to_yaml
from jobs.study.analysis import (
    RELIABLE,
    CurvePoint,
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
    read_curves,
    read_table,
    stability,
    to_csv,
)
from jobs.study.arms import CURVES, StudyConfig, StudyName, runs_of
from jobs.study.figures import draw_couplets, draw_curves, draw_estimates
from preprocess.shards.atomic_io import write_text
from simclr.config import to_plain

PAGE_NAME = "report.html"
_TITLES = {
    StudyName.augmentation: "Study of augmentations",
    StudyName.optimizer: "Study of optimisers",
    StudyName.rate: "Study of learning rates",
    StudyName.labels: "Study of label shares",
    StudyName.batch_size: "Study of batch sizes",
    StudyName.temperature: "Study of temperatures",
    StudyName.settings: "Study of settings",
    StudyName.published: "The couplets of the SimCLR-S2 study of 2021",
}
COUPLET_STUDIES = (StudyName.augmentation, StudyName.published)
# Elsewhere arms differ in the chance level or the scale of their losses.
SAME_LOSS = (StudyName.optimizer, StudyName.rate)


@dataclass(frozen=True, slots=True)
class Chance:
    """In which share of bootstrap draws a couplet is among the lowest quarter."""

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
    tables: dict[str, tuple[Sequence[object], type[Any]]] = {
        "scores": (scores, Score),
        "arms": (found.means, Estimate),
        "stability": ([found.ranks] if found.ranks else [], Stability),
        "differences": (found.against, Estimate),
        "curves": (found.curves, CurvePoint),
        "operations": (found.operations, Estimate),
        "lowest_quarter": (found.chances, Chance),
    }
    for name, (rows, kind) in tables.items():
        if rows:
            write_text(folder / f"{name}.csv", to_csv(rows, kind))


def _write_recipe(folder: Path, found: Findings) -> None:
    """Leave the couplets above the lowest quarter as a recipe of the user's own."""
    lowest = lowest_quarter(found.means)
    left = [name for name in found.table.arms if "+" in name and name not in lowest]
    if left:
        head = "".join(f"# {sentence}\n" for sentence in found.sentences)
        values = to_yaml({"augment": {"preset": "couplets", "operations": [], "couplets": left}})
        write_text(folder / "recipe" / "allowed.yaml", f"# @package _global_\n{head}{values}")


def _page(config: StudyConfig, folder: Path, found: Findings) -> Page:
    score, seeds = plain(found.score), _counted(found.table.seeds, "seed")
    page = Page(_TITLES[config.study]).lead(found.sentences[0]).bullets(*found.sentences[1:])
    if found.chances:
        _add_couplets(page, folder, found)
    elif config.study is StudyName.labels:
        path = draw_fractions(
            folder / "shares.png", by_share(found.table, config.score), config.score
        )
        caption = (
            f"Means over {seeds} of pretraining and of the labels drawn; bands: 95 % intervals."
        )
        page.heading("Score against the share of the labels").picture(path, caption)
    else:
        path = draw_estimates(folder / "arms.png", found.means, f"{score} (%)")
        sets = _counted(found.table.labels, "label set")
        page.heading("Arms").picture(path, f"Means over {sets} and {seeds}, 95 % intervals.")
    if found.against:
        label = f"difference in {score} (points)"
        path = draw_estimates(folder / "differences.png", found.against, label)
        caption = "Differences paired by seed, 95 % intervals; significance corrected by Holm."
        page.heading(found.compared).picture(path, caption)
    if found.curves:
        path = draw_curves(folder / "curves.png", found.curves)
        caption = f"Means over {seeds}. Dashed grey: the loss of guessing."
        if any(one.metric for one in found.curves):
            caption += " Black: untrained baselines."
        page.heading("Loss and probe").text(*filter(None, [collapses(found.curves)]))
        page.picture(path, caption)
    page.heading("All arms").table(*_arm_table(found))
    page.text("Every number of this page:")
    return page.links({path.name: path.name for path in sorted(folder.glob("*.csv"))})


def _counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _arm_table(found: Findings) -> tuple[list[str], list[list[object]]]:
    """Return header and rows, the best arm first; intervals and seeds only where they say more."""
    means = sorted(found.means, key=lambda one: (math.isnan(one.mean), -one.mean))
    has_intervals = any(not math.isnan(one.half_width) for one in means)
    has_gaps = len({one.seeds for one in means}) > 1
    header = [
        "arm",
        f"{plain(found.score)} (%)",
        *["± (95 %)"] * has_intervals,
        *["seeds"] * has_gaps,
    ]
    rows = [
        [
            one.name,
            _percent(one.mean),
            *[_percent(one.half_width)] * has_intervals,
            *[one.seeds] * has_gaps,
        ]
        for one in means
    ]
    return header, rows


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _add_couplets(page: Page, folder: Path, found: Findings) -> None:
    table = found.table
    pairs = table.only([name for name in table.arms if "+" in name])
    seeds = _counted(table.seeds, "seed")
    whole = (
        f"mean over {len(table.labels)} label sets" if len(table.labels) > 1 else table.labels[0]
    )
    maps = {"heatmap": (f"{plain(whole)}, {seeds}", arm_means(pairs))}
    for column, labels in enumerate(table.labels if len(table.labels) > 1 else ()):
        maps[f"heatmap_{labels}"] = plain(labels), arm_means(pairs.of_labels(column))
    values = [one.mean for _, means in maps.values() for one in means]
    limits = float(np.nanmin(values)), float(np.nanmax(values))
    page.heading("Couplets")
    for name, (title, means) in maps.items():
        # significance is of the mean over label sets
        clear = {one.name for one in found.against if one.excludes_zero and name == "heatmap"}
        path = draw_couplets(folder / f"{name}.png", means, limits, found.score, clear)
        shown = "Score with the half-width of its 95 % interval" if seeds[0] != "1" else "Score"
        bold = f"; bold: differs significantly from {table.arms[0]}" if clear else ""
        page.picture(
            path, f"{title[:1].upper()}{title[1:]}. {shown}; framed: the lowest quarter{bold}."
        )
    if found.operations:
        path = draw_estimates(
            folder / "operations.png", found.operations, "score with it minus without (points)"
        )
        page.heading("Operations").picture(
            path, "What each operation does to a couplet, against the mean of all operations."
        )
    likely = sorted(found.chances, key=lambda one: -one.chance)
    page.heading("The lowest quarter").text(
        "How often a couplet is in the lowest quarter when replicates are drawn again:"
    ).table(
        ("couplet", "share of draws"),
        [(one.arm, f"{one.chance:.0%}") for one in likely if one.chance >= 0.05],
    )


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
    page.text(f"Seeds {', '.join(map(str, config.seeds))}.")
    page.folded("all settings", to_yaml(to_plain(config)))


def ranking_verdict(found: Stability, seeds: int) -> list[str]:
    """Return whether the ranking of arms is resolved, how many seeds it takes, and its sources."""
    agreement = []
    if not math.isnan(found.pearson_labels):
        reliability = (
            f"as replicates, their mean has reliability {found.reliability_labels:.2f}"
            if found.pearson_labels > 0  # Spearman-Brown does not hold for others
            else "no better than chance"
        )
        agreement.append(
            f"Label sets agree on the arms with Spearman {found.spearman_labels:.2f} and Pearson "
            f"{found.pearson_labels:.2f}; {reliability}."
        )
    reliable = f"reliability {found.reliability_seeds:.2f}"
    rank = f"the mean of {seeds} seeds ranks the arms with {reliable}"
    if math.isnan(found.pearson_seeds):
        verdict = "Not conclusive: one seed cannot tell a difference from chance."
    elif math.isinf(found.seeds_needed):
        verdict = f"Not conclusive: {seeds} seeds agree on the arms no better than chance."
    elif found.reliability_seeds >= RELIABLE:
        verdict = f"Conclusive: {rank}."
    else:
        more = f"about {found.seeds_needed:.0f} seeds would resolve them"
        verdict = f"Not conclusive: {rank}; {more}."
    return [verdict, *agreement]


def effects_verdict(estimates: Sequence[Estimate], what: str) -> str:
    """Return which effects are significant, in points."""
    tested = [one for one in estimates if not math.isnan(one.p_value)]
    clear = [
        f"{one.name} {100 * one.mean:+.1f} ± {100 * one.half_width:.1f}"
        for one in tested
        if one.excludes_zero
    ]
    if not tested:
        return f"{what}: one seed cannot distinguish them from chance; use three or more."
    if not clear:
        return f"{what}: not conclusive, none of {len(tested)} differs significantly from 0."
    others = len(tested) - len(clear)
    rest = f"; the other {others} {'are' if others > 1 else 'is'} not" if others else ""
    return f"{what}: significant are {', '.join(clear)} (points){rest}."


def loss_beside_score(points: Sequence[CurvePoint], means: Sequence[Estimate], score: str) -> str:
    """Name the arm that the loss would choose and the one that the score chooses; empty for one."""
    last = {(one.arm, one.seed): one.loss for one in points}
    losses = {arm: _mean_loss(last, arm) for arm, _ in last}
    both = [one for one in means if not math.isnan(one.mean + losses.get(one.name, math.nan))]
    if len(both) < 2:
        return ""
    lowest = min(both, key=lambda one: losses[one.name])
    best = max(both, key=lambda one: one.mean)
    name = plain(score)
    sentence = (
        f"The lowest loss, {losses[lowest.name]:.2f}, is that of {lowest.name}, whose {name} is "
        f"{100 * lowest.mean:.1f} %; the highest {name}, {100 * best.mean:.1f} %, is that of "
        f"{best.name}, whose loss is {losses[best.name]:.2f}."
    )
    if lowest is best:
        sentence = (
            f"{best.name} has both the lowest loss, {losses[best.name]:.2f}, and the highest "
            f"{name}, {100 * best.mean:.1f} %."
        )
    if len(both) < 3 or len({one.mean for one in both}) < 2:
        return sentence
    found = stats.spearmanr([-losses[one.name] for one in both], [one.mean for one in both])
    return f"{sentence} Low loss and high {name} agree with Spearman {found.statistic:.2f}."


def _mean_loss(last: Mapping[tuple[str, int], float], arm: str) -> float:
    losses = [loss for (name, _), loss in last.items() if name == arm]
    return sum(losses) / len(losses)


def collapses(points: Sequence[CurvePoint]) -> str:
    """Name the arms that collapsed, with the share of their runs that did; empty if none did."""
    runs = {(one.arm, one.seed) for one in points}
    hit = {(one.arm, one.seed) for one in points if one.collapsed}
    arms = dict.fromkeys(one.arm for one in points if (one.arm, one.seed) in hit)
    named = [
        f"{arm} (in {sum(a == arm for a, _ in hit)} of {sum(a == arm for a, _ in runs)} runs)"
        for arm in arms
    ]
    return f"Projections collapsed at some step of {', '.join(named)}." if named else ""
