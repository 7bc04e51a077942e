"""Command line of all console scripts: options, settings, exit codes, one-line errors.

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use; 75, inside a job only: stopped
and saved, run it again.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from jobs import launch
from jobs.cli.errors import FAILED as FAILED
from jobs.cli.errors import WRONG_USE as WRONG_USE
from jobs.cli.errors import explain
from jobs.cli.schema import as_meant, help_page, refuse_misread, register, schema_of, to_settings
from jobs.config import ClusterConfig
from jobs.launch import Command
from jobs.slurm.environment import mark_rank_0_done
from simclr.config import require

DONE = 0
DEBUG = "debug=true"
HELP = frozenset({"--help", "-h"})
SWEEP = frozenset({"-m", "--multirun"})
CONFIG_DIR = frozenset({"--config-dir", "-cd"})
# Options that people know from other commands, and their equivalents here.
SPELLINGS = {
    "--dry-run": "cluster.dry_run=true",
    "dry_run=true": "cluster.dry_run=true",
    "--all-checkpoints": "all_checkpoints=true",
}
# hydra's own; checked here, as its parser prints several lines for a misspelt one
_FLAGS = SWEEP | {"--resolve", "--version", "--hydra-help"}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_WITH_VALUE = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--package", "-p", *CONFIG_DIR), ()),
    **dict.fromkeys(("--info", "-i"), _INFO),
}

Start = Callable[[Any, ClusterConfig], str]


def main(command: type[Command], start: Start = launch.run) -> NoReturn:
    """Run a command from ``sys.argv`` and exit.

    ``start`` runs or submits it, and returns the text for stdout; a command that starts others
    passes its own function instead of ``launch.run``, and then does not accept ``-m``.
    """
    arguments = sys.argv[1:]
    if HELP & set(arguments):
        say(help_page(command))
        raise SystemExit(DONE)

    def act() -> None:
        """Let hydra parse the arguments."""
        sys.argv[1:] = hydra_arguments(arguments, command)
        require(
            start is launch.run or not SWEEP & set(sys.argv),
            f"-m: simclr-{command.name} starts several runs itself; leave -m out",
        )
        _compose(command, start)

    code = guarded(command, act, debug=DEBUG in arguments)
    if code == DONE:
        mark_rank_0_done()
    raise SystemExit(code)


def main_without_settings(
    name: str, help_text: str, act: Callable[[list[str]], object]
) -> NoReturn:
    """Run a command that parses its own arguments, and exit; ``act`` receives all but debug=true.

    ``act`` returns True if it has found a failure.
    """
    if HELP & set(sys.argv[1:]):
        say(help_text)
        raise SystemExit(DONE)
    arguments = [word for word in sys.argv[1:] if word != DEBUG]
    debug = DEBUG in sys.argv[1:]
    raise SystemExit(guarded(name, lambda: act(arguments), debug=debug))


def guarded(command: type[Command] | str, act: Callable[[], object], *, debug: bool = False) -> int:
    """Call ``act`` and return the exit code; any exception becomes one line on stderr.

    If ``act`` returns True, it has found a failure. ``debug`` prints the traceback.
    """
    name = command if isinstance(command, str) else command.name
    try:
        failed = act() is True
    except KeyboardInterrupt:
        line, code = "interrupted; the same command continues from what is complete", FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = explain(error, None if isinstance(command, str) else command)
    else:
        return FAILED if failed else DONE
    print(f"simclr-{name}: {line}", file=sys.stderr)
    return code


def say(text: str) -> None:
    """Print a result on stdout; a reader that stops early, such as ``head``, is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # otherwise Python would report an error when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _compose(command: type[Command], start: Start) -> None:
    """Let hydra compose the settings and run the command, or collect the runs of a sweep."""
    # Without it, hydra prints errors in its own words, and always exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register(command)

    def task(config: DictConfig) -> tuple[Command, ClusterConfig] | None:
        """Run the command with one set of settings, or return it for a sweep."""
        try:
            context = HydraConfig.get()
            own = [s.path for s in context.runtime.config_sources if s.provider == "command-line"]
            check_own_files(own, context.runtime.choices, command)
            settings = to_settings(config)
            sweep = context.mode is RunMode.MULTIRUN
            if sweep and (key := command.output_key):
                # named by the swept values alone: the same command finds its earlier work
                folder = Path(getattr(settings, key), context.job.override_dirname)
                setattr(settings, key, str(folder.absolute()))
            composed = command.from_settings(settings), settings.cluster
            if sweep:
                return composed  # hydra_plugins/simclr_s2_launcher.py runs all of them
            result = start(*composed)
        except Exception as error:
            raise _Unprinted(error) from error
        if result:
            say(result)
        return None

    compose = hydra.main("pkg://jobs.conf", command.name, version_base="1.3")
    with ExitStack() as stack:
        if SWEEP & set(sys.argv):  # hydra writes a file and folders of its own, also in a dry run
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="simclr-sweep-"))
            sys.argv.append(f"hydra.sweep.dir='{own}'")
        try:
            compose(task)()
        except _Unprinted as hidden:
            raise hidden.args[0] from None


def check_own_files(
    folders: Sequence[str], chosen: Mapping[str, str], command: type[Command]
) -> None:
    """Check the files that are selected, by group, from the folders of ``--config-dir``."""
    for folder, (group, choice) in itertools.product(folders, chosen.items()):
        path = Path(folder, group, f"{choice}.yaml")
        if path.is_file():
            refuse_misread(path, schema_of(command))


class _Unprinted(BaseException):
    """Carries an error through hydra, which prints any ``Exception`` in its own words."""


def hydra_arguments(arguments: Sequence[str], command: type[Command]) -> list[str]:
    """Return the arguments with options first: hydra's parser accepts none after a setting.

    ValueError: an option, or its value, is unknown.
    """
    options: list[str] = []
    settings: list[str] = []
    words = iter([SPELLINGS.get(word, word) for word in arguments])
    for word in words:
        if word.startswith("-"):
            options += _option(word, words)
        else:
            require(not word.startswith("="), f"{word!r} has no key in front; write key=value")
            settings.append(as_meant(word, schema_of(command)))
    if SWEEP & set(options):
        parsed = OverridesParser.create().parse_overrides(settings)
        same = [one.get_key_element() for one in parsed if not one.is_sweep_override()]
        keys = ",".join(key.lstrip("+~") for key in same)
        settings.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
    return [*options, *settings]


def _option(word: str, following: Iterator[str]) -> list[str]:
    name, equals, value = word.partition("=")
    if word in _FLAGS:
        return [word]
    require(
        name in _WITH_VALUE,
        f"{word} is not an option; there are --help, --cfg job, -m for sweeps, --config-dir=DIR, "
        "--dry-run; settings have no dashes: key=value",
    )
    value = value if equals else next(following, "")
    allowed = _WITH_VALUE[name]
    require(bool(value), f"{name} needs a value: {name} {allowed[0] if allowed else 'VALUE'}")
    if name in CONFIG_DIR:
        return [name, config_dir(value)]
    require(
        not allowed or value in allowed, f"{name} is {value!r}; choose one of {', '.join(allowed)}"
    )
    return [name, value]


def config_dir(folder: str) -> str:
    """Return the folder of ``--config-dir``; ValueError: not a folder (hydra would only warn)."""
    require(
        Path(folder or "/dev/null").is_dir(),
        f"--config-dir is {folder!r}, which is not a folder; give the one that holds "
        "cluster/mine.yaml or recipe/ours.yaml",
    )
    return folder
