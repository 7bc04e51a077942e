"""Where log lines go: a process' place comes in, handlers of the root logger are set."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from jobs.place import Kind, Place

LOG_NAME = "logs/pretrain.log"  # of a run that trains here, where no scheduler keeps one


def log_as(place: Place, run_dir: Path | None = None) -> None:
    """Show log lines on stderr; of the main rank all, of others warnings only.

    Here, where no scheduler keeps a log, lines go to a file of the run folder as well.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if run_dir and place.kind is Kind.here and place.is_main:
        path = run_dir / LOG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path))
    logging.basicConfig(
        level=logging.INFO if place.is_main else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )
    # submitit has a handler of its own, and words that say nothing about the work
    logging.getLogger("submitit").propagate = False
