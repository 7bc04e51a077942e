"""The command line: arguments come in, an exit code, results on stdout and one-line errors go out.

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use; 75, inside a job only: stopped
and saved, run me again.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from jobs.arguments import HELP, understood
from jobs.help import Help, choices, render
from jobs.schema import APPS, SOURCES, App, register, to_app

DONE, FAILED, WRONG_USE = 0, 1, 2
MAX_LINE = 600  # torch appends the frames of its C++ side

# Groups that set values all over; the others are settings of the same name.
GROUPS_OF = {"pretrain": ("recipe",), "study": ("recipe",)}

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


def explain(error: Exception, verb: str) -> tuple[str, int]:
    """Return one line for an exception, and the exit code that it means."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_settings(error, verb), WRONG_USE
    if isinstance(error, ValueError):
        return _one_line(str(error)), WRONG_USE
    line = _one_line(str(error))[:MAX_LINE]
    # Errors that we raise on purpose have types and words of their own.
    if isinstance(error, OSError) or (isinstance(error, RuntimeError) and _is_ours(error)):
        return line, FAILED
    return f"{type(error).__name__}: {line}; debug=true shows where", FAILED


def say(text: str) -> None:
    """Print a result on stdout."""
    print(text)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show log records as lines on stderr, with the time of day."""
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S", stream=sys.stderr, force=True)


def nearest(word: str, valid: Sequence[str]) -> str:
    """Return ``did you mean ...? `` for the valid key whose last part is nearest, or nothing."""
    last_parts = {key.rpartition(".")[2]: key for key in valid}
    near = difflib.get_close_matches(word, last_parts, n=1)
    return f"did you mean {last_parts[near[0]]}? " if near else ""


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


def _explain_settings(error: Exception, verb: str) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(cause, verb)
    if isinstance(cause, OmegaConfBaseException):
        return _wrong_value(cause)
    if isinstance(error, OverrideParseException):
        reason = str(error).partition("\n")[0]
        cure = "write key=value; put values with special signs in quotes: 'output=\"a (b)\"'"
        return f"{error.override!r} is no setting ({reason}); {cure}"
    return _unknown_choice(str(error))


def _wrong_value(cause: OmegaConfBaseException) -> str:
    reason = str(cause.msg or cause).partition("\n")[0]
    key = str(cause.full_key or "a setting")
    if "is not a ListConfig" in reason:
        reason = f"takes a list; write {key}=[...]"
    return f"{key}: {reason}"


def _unknown_key(cause: ConfigKeyError | ConfigAttributeError, verb: str) -> str:
    *parents, last = str(cause.full_key or cause.key).split(".")
    chosen = cause.object_type
    # the schema of the chosen source, not only what all sources have
    level = chosen if chosen in SOURCES.values() else _class_at(APPS[verb], parents)
    if level is None:
        key = ".".join([*parents, last])
        return f"{key} is no setting yet; a plus adds it: +{key}=..."
    valid = [entry.name for entry in fields(level)]
    groups = [
        group for group in choices() if level is APPS[verb] and group in GROUPS_OF.get(verb, ())
    ]
    hint = nearest(last, valid) or nearest(last, _dotted(APPS[verb]))
    where = f"{'.'.join(parents)} has" if parents else "there are"
    return (
        f"{'.'.join([*parents, last])} is no setting; {hint}{where}: {', '.join([*valid, *groups])}"
    )


def _class_at(app: type[App], parents: Sequence[str]) -> type[Any] | None:
    """Return the dataclass in which the last part of a key was looked for."""
    kind: Any = app
    for name in parents:
        kind = get_type_hints(kind).get(name)
        if not is_dataclass(kind):
            return None
    return kind  # type: ignore[no-any-return]


def _dotted(app: type[App]) -> list[str]:
    """Return ``part.setting`` for the settings of all parts of a verb."""
    parts = {name: kind for name, kind in get_type_hints(app).items() if is_dataclass(kind)}
    return [f"{part}.{entry.name}" for part, kind in parts.items() for entry in fields(kind)]


def _unknown_choice(text: str) -> str:
    """Shorten hydra's words on configuration groups, with their lists of options."""
    found = re.search(r"(?:Could not \w+|You must specify) '(\w+)/?([^']*)'", text)
    if not found or found[1] not in choices():
        return _one_line(text)
    group, name = found.groups()
    valid = choices()[group]
    seen = f"{group} is {name!r}; {nearest(name, valid)}" if name else f"{group} is missing; "
    return f"{seen}choose one of {', '.join(valid)}"


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("jobs", "simclr", "preprocess")


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return " ".join(line for line in lines if line)
