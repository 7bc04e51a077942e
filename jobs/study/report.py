"""Write the report of a study: conclusions in words, tables, figures, a page, and a recipe.

Called by simclr-study when its runs are scored, and by ``study=published``. Every number on the
page is also in a CSV file. Scores are drawn in percent, differences in percentage points.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jobs.figures.canvas import COLORS, Axes, Page, canvas, draw_fractions, plain, write_csv
from jobs.run_dir import provenance, to_yaml
from jobs.study.analysis import (
    COUPLET_STUDIES,
    RELIABLE,
    Array,
    CurvePoint,
    Estimate,
    Findings,
    Score,
    Stability,
    arm_means,
    by_share,
    conclude,
    lowest_quarter,
    read_table,
)
from jobs.study.arms import StudyConfig, StudyName
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


def write_study(config: StudyConfig, made_by: Mapping[str, Any] | None = None) -> str:
    """Write tables, figures and the page of a study; return the conclusions and the page's path.

    ``made_by`` is its provenance; None uses that of this process.

    Raises:
        ValueError: no run has been scored yet.
    """
    found = conclude(config, read_table(config))
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    sentences = conclusions(found)
    _write_tables(folder, found)
    lowest = lowest_quarter(found.means)
    left = [name for name in found.table.arms if "+" in name and name not in lowest]
    if left and config.study in COUPLET_STUDIES:
        # the couplets above the lowest quarter become a recipe for the user
        head = "".join(f"# {sentence}\n" for sentence in sentences)
        values = to_yaml({"augment": {"preset": "couplets", "operations": [], "couplets": left}})
        write_text(folder / "recipe" / "allowed.yaml", f"# @package _global_\n{head}{values}")
    page = Page(_TITLES[config.study]).lead(sentences[0]).bullets(*sentences[1:])
    _add_findings(page, config, folder, found)
    _add_origin(page, config, made_by or provenance())
    return "\n".join([*sentences, str(page.write(folder / PAGE_NAME))])


def conclusions(found: Findings) -> list[str]:
    """Return the conclusions, one sentence each."""
    said = ranking_verdict(found.ranks, len(found.table.seeds)) if found.ranks else []
    if found.against:
        said.append(effects_verdict(found.against, _compared(found)))
    if found.operations:
        said.append(effects_verdict(found.operations, "Operations in couplets"))
    if found.same_loss:
        said.append(loss_beside_score(found.curves, found.means, found.score))
    if gaps := found.table.missing:
        more = f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
        shown = "; ".join(gaps[:5])
        said.append(f"Without a score: {shown}{more}. The same command makes what is missing.")
    return [sentence for sentence in said if sentence]


def _compared(found: Findings) -> str:
    """Return the heading for the differences."""
    if found.ranks:
        return f"Arms against {found.table.arms[0]}"
    return "Pretrained against the controls"


def _write_tables(folder: Path, found: Findings) -> None:
    table = found.table
    scores = [
        Score(table.arms[arm], table.labels[labels], table.seeds[seed], float(value))
        for (arm, labels, seed), value in np.ndenumerate(table.grid)
    ]
    tables: dict[str, Sequence[Any]] = {
        "scores": scores,
        "arms": found.means,
        "stability": [found.ranks] if found.ranks else [],
        "differences": found.against,
        "curves": found.curves,
        "operations": found.operations,
    }
    for name, rows in tables.items():
        if rows:
            header = [entry.name for entry in fields(rows[0])]
            write_csv(folder / f"{name}.csv", header, map(astuple, rows))
    if found.chances:
        write_csv(folder / "lowest_quarter.csv", ("arm", "chance"), found.chances.items())


def _add_findings(page: Page, config: StudyConfig, folder: Path, found: Findings) -> None:
    score, seeds = plain(found.score), _counted(found.table.seeds, "seed")
    if found.chances:
        _add_couplets(page, folder, found)
    elif config.study is StudyName.labels:
        rows = by_share(found.table, config.score)
        path = draw_fractions(folder / "shares.png", rows, config.score)
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
        page.heading(_compared(found)).picture(path, caption)
    if found.curves:
        path = draw_curves(folder / "curves.png", found.curves)
        caption = f"Means over {seeds}. Dashed grey: the loss of guessing."
        if any(one.metric for one in found.curves):
            caption += " Black: untrained baselines."
        page.heading("Loss and probe").text(*filter(None, [collapses(found.curves)]))
        page.picture(path, caption)
    _add_arms(page, found)
    page.text("Every number of this page:")
    page.links({path.name: path.name for path in sorted(folder.glob("*.csv"))})


def _counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _add_arms(page: Page, found: Findings) -> None:
    """Append all arms, best first; intervals and seeds only where informative."""
    means = sorted(found.means, key=lambda one: (math.isnan(one.mean), -one.mean))
    header = ["arm", f"{plain(found.score)} (%)"]
    columns: list[list[object]] = [[one.name for one in means]]
    columns.append([_percent(one.mean) for one in means])
    if any(not math.isnan(one.half_width) for one in means):
        header.append("± (95 %)")
        columns.append([_percent(one.half_width) for one in means])
    if len({one.seeds for one in means}) > 1:
        header.append("seeds")
        columns.append([one.seeds for one in means])
    page.heading("All arms").table(header, zip(*columns, strict=True))


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _add_couplets(page: Page, folder: Path, found: Findings) -> None:
    table = found.table
    pairs = table.only([name for name in table.arms if "+" in name])
    seeds = _counted(table.seeds, "seed")
    several = len(table.labels) > 1
    whole = f"mean over {len(table.labels)} label sets" if several else table.labels[0]
    maps = {"heatmap": (f"{plain(whole)}, {seeds}", arm_means(pairs))}
    for column, labels in enumerate(table.labels if several else ()):
        maps[f"heatmap_{labels}"] = plain(labels), arm_means(pairs.of_labels(column))
    values = [one.mean for _, means in maps.values() for one in means]
    limits = float(np.nanmin(values)), float(np.nanmax(values))
    page.heading("Couplets")
    for name, (title, means) in maps.items():
        # significance refers to the mean over label sets
        clear = {one.name for one in found.against if one.excludes_zero and name == "heatmap"}
        path = draw_couplets(folder / f"{name}.png", means, limits, found.score, clear)
        shown = (
            "Score with the half-width of its 95 % interval" if len(table.seeds) > 1 else "Score"
        )
        bold = f"; bold: differs significantly from {table.arms[0]}" if clear else ""
        caption = f"{title[:1].upper()}{title[1:]}. {shown}; framed: the lowest quarter{bold}."
        page.picture(path, caption)
    if found.operations:
        label = "score with it minus without (points)"
        path = draw_estimates(folder / "operations.png", found.operations, label)
        caption = "What each operation does to a couplet, against the mean of all operations."
        page.heading("Operations").picture(path, caption)
    likely = sorted(found.chances.items(), key=lambda item: -item[1])
    rows = [(arm, f"{chance:.0%}") for arm, chance in likely if chance >= 0.05]
    page.heading("The lowest quarter")
    page.text("How often a couplet is in the lowest quarter when replicates are drawn again:")
    page.table(("couplet", "share of draws"), rows)


def _add_origin(page: Page, config: StudyConfig, made_by: Mapping[str, Any]) -> None:
    """Append what is needed to reproduce the study."""
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
    """State whether the arms' ranking is resolved, or the seeds needed; and if label sets agree."""
    agreement = []
    if not math.isnan(found.pearson_labels):
        reliability = (
            f"as replicates, their mean has reliability {found.reliability_labels:.2f}"
            if found.pearson_labels > 0  # required by Spearman-Brown
            else "no better than chance"
        )
        agreement.append(
            f"Label sets agree on the arms with Spearman {found.spearman_labels:.2f} and Pearson "
            f"{found.pearson_labels:.2f}; {reliability}."
        )
    reliable = f"reliability {found.reliability_seeds:.2f}"
    rank = f"the mean of {seeds} seeds ranks the arms with {reliable}"
    if seeds == 1:
        verdict = "Not conclusive: one seed cannot tell a difference from chance."
    elif math.isnan(found.pearson_seeds):
        verdict = "No ranking is tested: it takes three arms of unequal scores under two seeds."
    elif math.isinf(found.seeds_needed):
        verdict = f"Not conclusive: {seeds} seeds agree on the arms no better than chance."
    elif found.reliability_seeds >= RELIABLE:
        verdict = f"Conclusive: {rank}."
    else:
        more = f"about {found.seeds_needed:.0f} seeds would resolve them"
        verdict = f"Not conclusive: {rank}; {more}."
    return [verdict, *agreement]


def effects_verdict(estimates: Sequence[Estimate], what: str) -> str:
    """Name the significant effects, in percentage points."""
    tested = [one for one in estimates if not math.isnan(one.p_value)]
    clear = [
        f"{one.name} {100 * one.mean:+.1f} ± {100 * one.half_width:.1f}"
        for one in tested
        if one.excludes_zero
    ]
    if not tested:
        return (
            f"{what}: fewer than two seeds have all scores, and one seed cannot distinguish them "
            "from chance; use three or more."
        )
    if not clear:
        return f"{what}: not conclusive, none of {len(tested)} differs significantly from 0."
    others = len(tested) - len(clear)
    rest = f"; the other {others} {'are' if others > 1 else 'is'} not" if others else ""
    return f"{what}: significant are {', '.join(clear)} (points){rest}."


def loss_beside_score(points: Sequence[CurvePoint], means: Sequence[Estimate], score: str) -> str:
    """Compare the arm of lowest loss with that of highest score; empty for fewer than two arms."""
    by_arm: dict[str, dict[int, float]] = {}
    for one in points:
        by_arm.setdefault(one.arm, {})[one.seed] = one.loss  # keeps that of the last record
    losses = {arm: sum(last.values()) / len(last) for arm, last in by_arm.items()}
    both = [one for one in means if not math.isnan(one.mean + losses.get(one.name, math.nan))]
    if len(both) < 2:
        return ""
    lowest = min(both, key=lambda one: losses[one.name])
    best = max(both, key=lambda one: one.mean)
    name = plain(score)
    highest, loss_there = f"{100 * best.mean:.1f} %", f"{losses[best.name]:.2f}"
    sentence = (
        f"{best.name} has both the lowest loss, {loss_there}, and the highest {name}, {highest}."
        if lowest is best
        else f"The lowest loss, {losses[lowest.name]:.2f}, is that of {lowest.name}, whose {name} "
        f"is {100 * lowest.mean:.1f} %; the highest {name}, {highest}, is that of {best.name}, "
        f"whose loss is {loss_there}."
    )
    if len(both) < 3 or len({one.mean for one in both}) < 2:
        return sentence
    found = stats.spearmanr([-losses[one.name] for one in both], [one.mean for one in both])
    return f"{sentence} Low loss and high {name} agree with Spearman {found.statistic:.2f}."


def collapses(points: Sequence[CurvePoint]) -> str:
    """Name the arms that collapsed, and in how many of their runs; empty if none did."""
    runs = {(one.arm, one.seed) for one in points}
    hit = {(one.arm, one.seed) for one in points if one.collapsed}
    arms = dict.fromkeys(one.arm for one in points if (one.arm, one.seed) in hit)
    named = [
        f"{arm} (in {sum(a == arm for a, _ in hit)} of {sum(a == arm for a, _ in runs)} runs)"
        for arm in arms
    ]
    return f"Projections collapsed at some step of {', '.join(named)}." if named else ""


# The heatmap is a triangle that shows each pair of the nine operations once.
_ROWS = ("brightness", "contrast", "gain", "speckle", "flip", "rotation", "shift", "zoom")
_COLUMNS = ("blur", *_ROWS[:-1])
_PALE = "#444444"  # still readable on the darkest green
_GREY = "#777777"
_SIDE = 0.46  # half a frame, in cells 1 wide: frames of neighbours do not touch


def draw_couplets(
    path: Path,
    estimates: Sequence[Estimate],
    limits: tuple[float, float],
    score: str,
    clear: Set[str],
) -> Path:
    """Draw scored couplets as a triangle; frame their lowest quarter.

    ``limits`` are the scores (0 to 1) at the ends of the colour scale. Couplets in ``clear``, which
    differ significantly from the reference, are in bold.
    """
    grid: Array = np.full((len(_ROWS), len(_COLUMNS)), np.nan)
    lowest = lowest_quarter(estimates)
    with canvas(path, 8.6, 6.2) as figure:
        axes = figure.subplots()
        for one in estimates:
            if math.isnan(one.mean):
                continue
            column, below = sorted(("blur", *_ROWS).index(name) for name in one.name.split("+"))
            row = below - 1  # rows start at the second operation
            grid[row, column] = 100 * one.mean
            style: dict[str, Any] = {"color": _PALE}
            if one.name in clear:
                style = {"color": "black", "weight": "bold"}
            text = f"{100 * one.mean:.1f}"
            if not math.isnan(one.half_width):
                text += f"\n±{100 * one.half_width:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=11, **style)
            if one.name in lowest:
                across = [column + _SIDE * sign for sign in (-1, 1, 1, -1, -1)]
                down = [row + _SIDE * sign for sign in (-1, -1, 1, 1, -1)]
                axes.plot(across, down, color=COLORS[1], linewidth=2)
        low, high = (100 * limit for limit in limits)
        image = axes.imshow(grid, cmap="YlGn", vmin=low, vmax=high, alpha=0.55, aspect="auto")
        axes.set_xticks(range(len(_COLUMNS)), _COLUMNS, rotation=30, ha="right", fontsize=11)
        axes.set_yticks(range(len(_ROWS)), _ROWS, fontsize=11)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, shrink=0.7, label=f"{plain(score)} (%)")
    return path


def draw_estimates(path: Path, estimates: Sequence[Estimate], label: str) -> Path:
    """Draw means with intervals, in the given order; for tested effects, with a line at 0."""
    with canvas(path, 8.6, 1.2 + 0.3 * len(estimates)) as figure:
        axes = figure.subplots()
        for row, one in enumerate(estimates):
            half = 0 if math.isnan(one.half_width) else 100 * one.half_width
            style: dict[str, Any] = {"fmt": "o", "capsize": 3, "markersize": 4}
            color = COLORS[1] if one.excludes_zero else COLORS[0]
            axes.errorbar(100 * one.mean, row, xerr=half, color=color, **style)
        axes.set_yticks(range(len(estimates)), [one.name for one in estimates])
        axes.set_ylim(len(estimates) - 0.4, -0.6)  # top to bottom, as in the tables
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        if tests := sum(not math.isnan(one.p_value) for one in estimates):
            axes.axvline(0, color=COLORS[6], linewidth=1)
            # of many intervals, some exclude 0 by chance: the colour counts, not the interval
            axes.set_title(f"red: significant after correction for {tests} tests", fontsize=10)
    return path


def draw_curves(path: Path, points: Sequence[CurvePoint]) -> Path:
    """Draw each arm's loss with the chance level and, where runs were probed, the probe score.

    Lines are means over seeds; arms that differ only in the last word share a colour; crosses mark
    collapses. The loss does not measure quality; the chance level depends on the batch size.
    """
    arms = list(dict.fromkeys(one.arm for one in points))
    metric = next((one.metric for one in points if one.metric), "")
    with canvas(path, 13 if metric else 8.6, 5) as figure:
        left, *right = figure.subplots(1, 2 if metric else 1, squeeze=False)[0]
        for arm, style in zip(arms, _styles(arms), strict=True):
            own = [one for one in points if one.arm == arm]
            for axes, value in zip((left, *right), ("loss", "probe"), strict=False):
                _draw_curve(axes, own, value, {"label": arm, **style})
        if any(one.collapsed for one in points):
            left.plot([], [], "x", color=COLORS[6], label="collapsed")
        for chance in sorted({one.chance_level for one in points}):
            left.axhline(chance, color=_GREY, linestyle="--", linewidth=1)
            text = f"chance: ln(2N - 1) = {chance:.2f}"
            left.annotate(text, (1, chance), ha="right", va="bottom", fontsize=9)
        left.set_ylabel("contrastive loss (no measure of quality)")
        for axes in right:
            axes.set_ylabel(f"linear probe, validation labels: {plain(metric)} (%)")
            for name, dashes in (("random_encoder", ":"), ("image_statistics", "--")):
                values = [value for one in points if not math.isnan(value := getattr(one, name))]
                if values:
                    level = 100 * float(np.mean(values))
                    axes.axhline(level, color=COLORS[6], linestyle=dashes, linewidth=1)
                    axes.annotate(plain(name), (0.01, level), ha="left", va="bottom", fontsize=9)
        for axes in (left, *right):
            axes.set(xlabel="share of all steps", xlim=(0, 1.02))
            axes.grid(alpha=0.3)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", fontsize=9)
    return path


def _styles(arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return colour and dashes of each arm: one colour per family, dashes within a family."""
    families = [arm.rpartition(" ")[0] or arm for arm in arms]
    colors, styles = list(dict.fromkeys(families)), []
    for number, family in enumerate(families):
        color, rank = colors.index(family), families[:number].count(family)
        dashes = ("-", "--", ":", "-.")[(rank + color // len(COLORS)) % 4]
        styles.append({"color": COLORS[color % len(COLORS)], "linestyle": dashes})
    return styles


def _draw_curve(
    axes: Axes, own: Sequence[CurvePoint], value: str, style: Mapping[str, Any]
) -> None:
    """Draw an arm's mean over seeds at each share of its steps, and mark collapses."""
    is_probe = value == "probe"
    known: dict[float, list[float]] = {}
    for one in own:
        if not math.isnan(number := getattr(one, value)):
            known.setdefault(one.share, []).append(100 * number if is_probe else number)
    means = {share: float(np.mean(known[share])) for share in sorted(known)}
    marker = "o" if is_probe else ""
    axes.plot([*means], [*means.values()], linewidth=1.3, marker=marker, markersize=3, **style)
    if fallen := sorted({one.share for one in own if one.collapsed} & set(means)):
        heights = [means[share] for share in fallen]
        axes.plot(fallen, heights, "x", color=style["color"], markersize=7)
