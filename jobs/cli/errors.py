"""An exception comes in, one line in the user's words and an exit code go out."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

from jobs.cli.help import choices
from jobs.cli.schema import APPS, App

FAILED, WRONG_USE = 1, 2
MAX_LINE = 600  # torch appends the frames of its C++ side

# Groups that set values all over; the others are settings of the same name.
GROUPS_OF = {"pretrain": ("recipe",), "study": ("recipe",)}

_ALIKE = 0.7  # below, words such as pretrained and operations would be taken for each other

# What omegaconf says of a value of the wrong kind, and what it wanted.
_WANTED = {
    "Integer": "give a whole number",
    "Float": "give a number",
    "valid bool": "give true or false",
    "'list' to string": "give one value, without brackets",
    "'dict' to string": "give one value, without braces",
}
_LESS_TRAINING = (
    "lower data.global_batch_size or augment.view_size_px, or set precision=bfloat16 and "
    "model.activation_checkpointing=true"
)
_LESS = {"pretrain": _LESS_TRAINING, "study": _LESS_TRAINING, "evaluate": "lower batch_size"}
# Of CPU and GPU: torch has a class of its own for the latter alone.
_NO_MEMORY = re.compile("out of memory|[Cc]an't allocate memory")

# The usual causes of the system's own errors, for people who do not know its words.
_CURES = {
    errno.ENOENT: "correct the path",
    errno.EEXIST: "a file stands where a folder is wanted; give another path",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EISDIR: "give a file, not a folder",
    errno.EACCES: "you may not; give another path, or ask its owner",
    errno.EPERM: "you may not; give another path, or ask its owner",
    errno.EROFS: "the file system is read-only; give another path",
    errno.ENOSPC: "free space, and give the same command again",
    errno.EDQUOT: "your quota is full; free space, and give the same command again",
    errno.ENAMETOOLONG: "give a shorter name",
}


def explain(error: Exception, verb: str) -> tuple[str, int]:
    """Return one line for an exception, and the exit code that it means."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_settings(error, verb), WRONG_USE
    if isinstance(error, YAMLError):
        return _unreadable(error), WRONG_USE
    if isinstance(error, ValueError):
        return _one_line(str(error)), WRONG_USE
    line = _one_line(str(error))[:MAX_LINE]
    if isinstance(error, MemoryError) or _NO_MEMORY.search(line):
        return _out_of_memory(line, verb), FAILED
    if isinstance(error, OSError):
        return _of_system(error) or line, FAILED
    # Errors that we raise on purpose have types and words of their own.
    if isinstance(error, RuntimeError) and _is_ours(error):
        return line, FAILED
    return f"{type(error).__name__}: {line}; debug=true shows where", FAILED


def _out_of_memory(line: str, verb: str) -> str:
    """Return how much was asked for, if the words tell, and what asks for less."""
    amount = re.search(r"allocate ([\d.]+ \w+)", line)
    wanted = f" for {amount[1]} more" if amount else ""
    return f"out of memory{wanted}; {_LESS.get(verb, 'ask for less')}"


def nearest(word: str, valid: Sequence[str]) -> str:
    """Return ``did you mean ...? `` for the valid key whose last part is nearest, or nothing."""
    last_parts = {key.rpartition(".")[2]: key for key in valid}
    near = difflib.get_close_matches(word, last_parts, n=1, cutoff=_ALIKE)
    return f"did you mean {last_parts[near[0]]}? " if near else ""


def _explain_settings(error: Exception, verb: str) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(cause, verb)
    if isinstance(cause, OmegaConfBaseException):
        return _wrong_value(cause)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no setting; {_quoted(str(error.override))}"
    several = re.match(r"Ambiguous value for argument '(.*?)=(.*)'", str(error))
    if several:
        key, values = several.groups()
        return f"{key} is {values}; several values need -m, a run for each; a list is [{values}]"
    return _unknown_choice(str(error)) or _of_file(str(error), verb) or _one_line(str(error))


def _quoted(word: str) -> str:
    """Return how a word that hydra cannot read is written so that it can, for a shell."""
    key, equals, value = word.partition("=")
    plain = bool(equals and value) and not re.search(r"""["'\\{}\[\]]""", value)
    example = f'{key}="{value}"' if plain and re.fullmatch(r"[\w.]+", key) else 'output="a (b)"'
    return (
        "write key=value without spaces; values with special signs or letters stand in quotes: "
        f"'{example}'"
    )


def _wrong_value(cause: OmegaConfBaseException) -> str:
    reason = str(cause.msg or cause).partition("\n")[0]
    return _of_kind(str(cause.full_key or "a setting"), reason)


def _of_kind(key: str, reason: str) -> str:
    """Say of which kind a value should have been, from what omegaconf says of it."""
    value = re.search(r"Value '(.*)' (?:of type|is not)|to string: '(.*)'$", reason)
    wanted = next((cure for word, cure in _WANTED.items() if word in reason), "")
    if wanted and value:
        return f"{key} is {value[1] or value[2]}; {wanted}"
    if "is not Optional" in reason:
        return f"{key} is null; give a value, or leave it out"
    if "is not a subclass of" in reason:
        return f"{key} has settings of its own; give one of them: {key}.NAME=..."
    if "is not a ListConfig" in reason:
        return f"{key}: takes a list; write {key}=[...]"
    return f"{key}: {reason}"


def _unknown_key(
    cause: ConfigKeyError | ConfigAttributeError, verb: str, full_key: str = ""
) -> str:
    *parents, last = (full_key or str(cause.full_key or cause.key)).split(".")
    chosen = cause.object_type
    # the schema of the chosen source, not only what all sources have
    level = chosen if is_dataclass(chosen) else _class_at(APPS[verb], parents)
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


def _of_file(text: str, verb: str) -> str:
    """Say what is wrong in a yaml file of the user's; hydra tells its name in words alone."""
    found = re.match(r"In '([^']+)': (\w+) .*\n(.*)", text)
    if not found:
        return ""
    file, kind, reason = found.groups()
    key = re.search(r"full_key: (\S+)", text)
    if not key:
        return f"{file}.yaml holds no settings; write a line for each: key: value"
    if kind in (ConfigKeyError.__name__, ConfigAttributeError.__name__):
        return f"{file}.yaml: {_unknown_key(ConfigKeyError(key[1]), verb, key[1])}"
    return f"{file}.yaml: {_of_kind(key[1], reason)}"


def _unreadable(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a file of settings"
    problem = getattr(error, "problem", None) or str(error)
    return f"{where} is no YAML ({_one_line(problem)}); write a line for each: key: value"


def _of_system(error: OSError) -> str:
    """Return path, words and cure of an error of the system; nothing if it is no such error."""
    if error.errno not in _CURES or error.filename is None:
        return ""
    return f"{os.fsdecode(error.filename)}: {error.strerror}; {_CURES[error.errno]}"


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
    """Shorten hydra's words on configuration groups; empty if they are on something else."""
    found = re.search(r"(?:Could not \w+|You must specify) '(\w+)/?([^']*)'", text)
    if not found or found[1] not in choices():
        return ""
    group, name = found.groups()
    valid = choices()[group]
    seen = f"{group} is {name!r}; {nearest(name, valid)}" if name else f"{group} is missing; "
    return f"{seen}choose one of {', '.join(valid)}"


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("jobs", "simclr", "preprocess")


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return " ".join(line for line in lines if line)
