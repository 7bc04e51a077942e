"""The metric records of a run come in; its curves go out as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.figures.canvas import COLORS, Axes, canvas
from simclr.metrics import METRICS_NAME, read_metrics

CURVES_NAME = "curves.png"

Records = Sequence[dict[str, Any]]


def draw_curves(run_dir: Path) -> Path | None:
    """Draw ``curves.png`` into a run folder and return its path; None without any record."""
    metrics = run_dir / METRICS_NAME
    records = read_metrics(metrics) if metrics.is_file() else []
    if not records:
        return None
    path = run_dir / CURVES_NAME
    with canvas(path, 10, 8.5) as figure:
        axes = figure.subplots(3, 2, sharex=True)
        panels = (_loss, _rate, _gradient, _speed, _spread, _probe)
        for panel, place in zip(panels, axes.flat, strict=True):
            panel(place, records)
            place.grid(alpha=0.3)
        for place in axes[-1]:
            place.set_xlabel("step")
        figure.suptitle(run_dir.resolve().name)
    return path


def _loss(axes: Axes, records: Records) -> None:
    _line(axes, records, "loss", 0)
    chance = records[-1]["chance_level"]
    axes.axhline(chance, color=COLORS[6], linestyle="--", linewidth=1)
    _note(axes, chance, f"chance: {chance:.2f}")
    axes.set_title("contrastive loss (no measure of quality)")


def _rate(axes: Axes, records: Records) -> None:
    _line(axes, records, "learning_rate", 1)
    axes.set_ylim(bottom=0)
    axes.set_title("learning rate")


def _gradient(axes: Axes, records: Records) -> None:
    _line(axes, records, "gradient_norm", 2)
    axes.set_yscale("log")
    skipped = records[-1].get("skipped_steps", 0)
    axes.set_title("gradient norm" + (f" ({skipped} steps skipped)" if skipped else ""))


def _speed(axes: Axes, records: Records) -> None:
    _line(axes, records, "patches_per_s", 3)
    axes.set_ylim(bottom=0)
    axes.set_title("patches per second")


def _spread(axes: Axes, records: Records) -> None:
    _line(axes, records, "deviation", 4, "deviation (healthy: 1)")
    _line(axes, records, "mean_cosine", 5, "mean cosine (healthy: 0)")
    axes.set_ylim(-0.05, 1.1)
    axes.set_title("spread of the projections")
    axes.legend(fontsize="small")


def _probe(axes: Axes, records: Records) -> None:
    """Draw the headlines of probe and k-NN beside the encoders that learnt nothing."""
    probed = [record for record in records if any(key.startswith("probe/") for key in record)]
    axes.set_title("held-out validation labels")
    if not probed:
        axes.text(0.5, 0.5, "not probed: monitor.shards", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    headline = next(key for key in probed[-1] if key.startswith("probe/")).partition("/")[2]
    for number, name in enumerate(("probe", "knn")):
        label = {"probe": "linear probe", "knn": "k-NN"}[name]
        _line(axes, probed, f"{name}/{headline}", number, label, marker="o")
    for number, key in enumerate(key for key in probed[-1] if key.startswith("controls/")):
        value, style = probed[-1][key], (":", "--")[number % 2]
        label = f"linear probe: {key.partition('/')[2].replace('_', ' ')}"
        axes.axhline(value, color=COLORS[6], linestyle=style, linewidth=1, label=label)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(headline.replace("_", " "))
    axes.legend(fontsize="small")


def _line(
    axes: Axes, records: Records, key: str, color: int, label: str = "", marker: str = ""
) -> None:
    # null stands where a number did not exist; matplotlib leaves a gap at NaN
    values = [float("nan") if record.get(key) is None else record[key] for record in records]
    steps = [record["step"] for record in records]
    axes.plot(
        steps,
        values,
        color=COLORS[color],
        label=label or None,
        # a single record would draw no line at all
        marker=marker or ("o" if len(records) == 1 else ""),
        markersize=4,
    )


def _note(axes: Axes, height: float, text: str) -> None:
    axes.annotate(
        text,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize="small",
    )
