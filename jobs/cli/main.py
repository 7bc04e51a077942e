"""The command line: arguments come in, an exit code, results on stdout and one-line errors go out.

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use; 75, inside a job only: stopped
and saved, run me again.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from jobs.cli.errors import FAILED as FAILED
from jobs.cli.errors import WRONG_USE as WRONG_USE
from jobs.cli.errors import explain
from jobs.cli.help import Help, render
from jobs.cli.options import HELP, understood
from jobs.cli.schema import APPS, register, to_app

DONE = 0

# What a member of a sweep gets from hydra: a folder of its own.
Work = Callable[[Any, str | None], str]


def main(verb: str, work: Work, text: Help) -> None:
    """Run a verb from ``sys.argv`` and leave the process.

    Args:
        verb: ``pack``, ``pretrain``, ...; also the name of its yaml file.
        work: takes the checked settings, and the folder of a sweep's member or None; returns what
            stdout shall say.
        text: what ``--help`` shows.
    """
    arguments = sys.argv[1:]
    if HELP & set(arguments):
        print(render(verb, text, APPS[verb]))
        raise SystemExit(DONE)

    def act() -> None:
        """Let hydra read the arguments."""
        sys.argv[1:] = understood(arguments)
        _compose(verb, work)

    raise SystemExit(guarded(verb, act, debug="debug=true" in arguments))


def guarded(verb: str, act: Callable[[], object], *, debug: bool = False) -> int:
    """Call ``act``; turn any exception into one line on stderr and an exit code."""
    try:
        act()
    except KeyboardInterrupt:
        return _complain(verb, "interrupted; the same command goes on from what is whole", FAILED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _complain(verb, *explain(error, verb))
    return DONE


def say(text: str) -> None:
    """Print a result on stdout."""
    print(text)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show log records as lines on stderr, with the time of day."""
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S", stream=sys.stderr, force=True)


def _compose(verb: str, work: Work) -> None:
    """Let hydra compose the settings and call the work with them, once or for each member."""
    # Without it hydra prints errors in its own words, and leaves with 1 whatever they mean.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()

    def task(config: DictConfig) -> None:
        """Do the work of one member, and leave with its exit code."""
        # Hydra would note an exception in its own words, and Slurm would see a success.
        code = guarded(verb, lambda: _work(work, config), debug=bool(config.debug))
        if code:
            raise SystemExit(code)

    compose = hydra.main(version_base="1.3", config_path="pkg://jobs.conf", config_name=verb)
    compose(task)()


def _work(work: Work, config: DictConfig) -> None:
    context = HydraConfig.get()
    member = context.runtime.output_dir if context.mode is RunMode.MULTIRUN else None
    result = work(to_app(config), member)
    if result:
        say(result)


def _complain(verb: str, line: str, code: int) -> int:
    print(f"simclr-{verb}: {line}", file=sys.stderr)
    return code
