"""A drawing comes in, a PNG file goes out whole; the only module that imports matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from preprocess.shards.atomic import atomic_path

__all__ = [
    "COLORS",
    "Axes",
    "Colormap",
    "Figure",
    "ListedColormap",
    "Normalize",
    "TwoSlopeNorm",
    "canvas",
]

# Okabe and Ito's palette: told apart by colour-blind readers too, and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_DPI = 150


@contextmanager
def canvas(path: str | Path, width: float = 7.0, height: float = 4.5) -> Iterator[Figure]:
    """Yield an empty figure of ``width`` x ``height`` inches; at the end ``path`` holds it as PNG.

    No global state of matplotlib is touched: figures can be drawn in threads and on login nodes
    without a display. Nothing is written if the drawing raises.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    # No software or date in the file: the same data give the same bytes.
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=_DPI, metadata={"Software": None})
