"""The members of a sweep (``-m``) come in; one job array of frozen members goes out.

hydra composes them, and hands them over by its launcher: ``hydra_plugins/simclr_s2_launcher.py``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from jobs.launch import Request, submit_all
from jobs.runfolder import JOB_FOLDER

SWEEP = frozenset({"-m", "--multirun"})


def naming(settings: Sequence[str]) -> list[str]:
    """Return the settings that let hydra name each member's folder by its swept values alone.

    The same command gives the same names, so that members find what they have done.
    """
    parsed = OverridesParser.create().parse_overrides(list(settings))
    same = [one.get_key_element() for one in parsed if not one.is_sweep_override()]
    keys = ",".join(key.lstrip("+~") for key in same)
    return [f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"]


def submit_members(requests: Sequence[Request]) -> list[str]:
    """Submit members as one array for each kind of need; return the job ids, or the scripts.

    Scripts and logs of all members lie beside the members' own folders.
    """
    folders = [str(request.task.folder.parent.parent.absolute()) for request in requests]
    folder = Path(os.path.commonpath(folders)) if folders else Path()
    # a sweep over nodes or partitions asks for different things, an array for the same
    groups = itertools.groupby(requests, lambda request: request.needs)
    return [
        submit_all([request.task for request in group], folder / JOB_FOLDER, needs)
        for needs, group in groups
    ]
