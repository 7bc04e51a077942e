"""``simclr-inspect``: pictures of what was packed, and of what training makes of it."""

from __future__ import annotations

from jobs import cli
from jobs.help import Help
from jobs.inspection import InspectConfig
from jobs.launch import dispatch
from jobs.schema import InspectApp, narrow
from jobs.tasks.inspection import Inspect

HELP = Help(
    sentence="draw what was packed (patches in true and false colour, reflectance, classes, a "
    "map), or what training makes of it.",
    examples=(
        "simclr-inspect shards=shards",
        "simclr-inspect what=augment shards=shards",
        "simclr-inspect what=augment shards=shards augment.preset=paper_literal seed=3",
    ),
    settings={
        "what": "shards, or augment: patches x operations, and two views of each",
        "shards": "packed folder",
        "output": "folder for pictures and page; default SHARDS/inspection",
        "patches": "how many are shown, evenly spread",
        "seed": "of the operations, for augment",
        "augment.preset": "how views are made, as in simclr-pretrain",
    },
    output="PNG files and one HTML page that holds them; stdout names the page.",
)


def work(app: InspectApp, member: str | None) -> str:
    """Draw, or submit it; return the page."""
    return dispatch(Inspect(narrow(app, InspectConfig)), app.cluster, in_sweep=member is not None)


def main() -> None:
    """Console script."""
    cli.main("inspect", work, HELP)


if __name__ == "__main__":
    main()
