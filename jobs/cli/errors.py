"""Turn an exception into one line in the user's terms, with the fix, and an exit code."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

from jobs.cli.schema import choices, schema_of, type_of
from jobs.launch import Command
from preprocess.config import SourceConfig
from preprocess.sources import SOURCES

FAILED, WRONG_USE = 1, 2
MAX_LINE = 600  # torch appends its C++ stack frames
_GLOBAL = "# @package _global_"
_ALIKE = 0.7  # below, words such as pretrained and operations would match

# Omegaconf's messages for a value of the wrong type, and what to give instead.
_TYPES = {
    "Integer": "give a whole number",
    "Float": "give a number",
    "valid bool": "give true or false",
    "'list' to string": "give one value, without brackets",
    "'dict' to string": "give one value, without braces",
}
# For both CPU and GPU: torch has its own exception class only for the GPU.
_NO_MEMORY = re.compile("out of memory|[Cc]an't allocate memory")
_NO_PERMISSION = "no permission; give another path, or ask its owner"
_NO_OPERATION = "its file system cannot do this; give a path on another one"
_SYSTEM_FIXES = {
    errno.ENOENT: "correct the path",
    errno.EEXIST: "a file is where a folder is needed; give another path",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EISDIR: "give a file, not a folder",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "the file system is read-only; give another path",
    errno.ENOSPC: "free space, and give the same command again",
    errno.EDQUOT: "your quota is full; free space, and give the same command again",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "links lead in a circle; give the folder itself",
    errno.EFBIG: "ulimit -f or the file system allows no larger file; raise it",
    errno.EMFILE: "ulimit -n allows no more open files; raise it",
    errno.EIO: "the storage fails; see dmesg, or give another path",
    errno.ESTALE: "the file server lost it; give the same command again",
    errno.ETIMEDOUT: "the file server gives no answer; give the same command again",
    errno.EINVAL: _NO_OPERATION,
    errno.ENOTSUP: _NO_OPERATION,
    errno.ENOSYS: _NO_OPERATION,
}


def explain(error: Exception, command: type[Command] | None = None) -> tuple[str, int]:
    """Return one line for an exception, and the exit code."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _settings_error(error, command), WRONG_USE
    if isinstance(error, YAMLError):
        return _yaml_error(error), WRONG_USE
    if isinstance(error, ValueError):
        return _one_line(str(error)), WRONG_USE
    line = _one_line(str(error))[:MAX_LINE]
    if isinstance(error, MemoryError) or _NO_MEMORY.search(line):
        amount = re.search(r"allocate ([\d.]+ \w+)", line)
        wanted = f" for {amount[1]} more" if amount else ""
        fix = command.memory_fix if command else Command.memory_fix
        return f"out of memory{wanted}; {fix}", FAILED
    if isinstance(error, OSError):
        if error.errno in _SYSTEM_FIXES:
            path = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
            line = f"{path}{error.strerror}; {_SYSTEM_FIXES[error.errno]}"
        return line, FAILED
    # Errors that we raise on purpose have their own types and messages.
    ours = type(error).__module__.split(".")[0] in ("jobs", "simclr", "preprocess")
    if isinstance(error, RuntimeError) and ours:
        return line, FAILED
    return f"{type(error).__name__}: {line}; debug=true shows where", FAILED


def nearest(word: str, valid: Sequence[str]) -> str:
    """Return ``did you mean ...? `` for the valid key with the nearest last part, else nothing."""
    last_parts = {key.rpartition(".")[2]: key for key in valid}
    near = difflib.get_close_matches(word, last_parts, n=1, cutoff=_ALIKE)
    return f"did you mean {last_parts[near[0]]}? " if near else ""


def _settings_error(error: Exception, command: type[Command] | None) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(cause, command)
    if isinstance(cause, OmegaConfBaseException):
        reason = str(cause.msg or cause).partition("\n")[0]
        return _wrong_type(str(cause.full_key or "a setting"), reason)
    if isinstance(error, OverrideParseException):
        # how to write, in a shell, a word that hydra cannot parse
        key, equals, value = str(error.override).partition("=")
        plain = bool(equals and value) and not re.search(r"""["'\\{}\[\]]""", value)
        example = f'{key}="{value}"' if plain and re.fullmatch(r"[\w.]+", key) else 'output="a (b)"'
        return (
            f"{error.override!r} is not a setting; write key=value without spaces; values with "
            f"special signs or letters stand in quotes: '{example}'"
        )
    text = str(error)
    several = re.match(r"Ambiguous value for argument '(.*?)=(.*)'", text)
    if several:
        key, values = several.groups()
        return f"{key} is {values}; several values need -m, a run for each; a list is [{values}]"
    return _unknown_choice(text) or _error_in_file(text, command) or _one_line(text)


def _wrong_type(key: str, reason: str) -> str:
    """Name the type that a value should have, from omegaconf's message."""
    value = re.search(r"Value '(.*)' (?:of type|is not)|to string: '(.*)'$", reason)
    wanted = next((fix for word, fix in _TYPES.items() if word in reason), "")
    if wanted and value:
        return f"{key} is {value[1] or value[2]}; {wanted}"
    if "is not Optional" in reason or "NoneType is not a subclass of" in reason:
        return f"{key} is null; give a value, or leave it out"
    if "is not a subclass of" in reason:
        return f"{key} has settings of its own; give one of them: {key}.NAME=..."
    if "is not a ListConfig" in reason:
        return f"{key}: takes a list; write {key}=[...]"
    return f"{key}: {reason}"


def _unknown_key(
    cause: ConfigKeyError | ConfigAttributeError, command: type[Command] | None, full_key: str = ""
) -> str:
    *parents, last = (full_key or str(cause.full_key or cause.key)).split(".")
    key, schema = ".".join([*parents, last]), schema_of(command) if command else None
    chosen = cause.object_type
    at_key = type_of(".".join(parents), schema) if schema and parents else schema
    # the schema of the chosen source, not only the settings common to all sources
    level = chosen if is_dataclass(chosen) else at_key
    if parents[:2] == ["hydra", "launcher"]:
        return f"{key} is not a setting; cluster= says where and with what jobs run"
    if schema is None or not is_dataclass(level):
        return f"{key} is not a setting yet; a plus adds it: +{key}=..."
    valid = [entry.name for entry in fields(level)]
    known = set(valid)
    if level is schema and command:  # groups that are not also settings
        valid += [group for group in command.groups if group not in known]
    parts = {name: kind for name, kind in get_type_hints(schema).items() if is_dataclass(kind)}
    deeper = [f"{part}.{entry.name}" for part, kind in parts.items() for entry in fields(kind)]
    if level is SourceConfig:  # a file does not say of which kind of source it is
        deeper = [
            f"{'.'.join(parents)}.{e.name}" for s in SOURCES.values() for e in fields(s.config)
        ]
    hint = nearest(last, valid) or nearest(last, deeper)
    where = f"{'.'.join(parents)} has" if parents else "there are"
    return f"{key} is not a setting; {hint}{where}: {', '.join(valid)}"


def _error_in_file(text: str, command: type[Command] | None) -> str:
    """Explain an error in a user's yaml file, which hydra names only in its message."""
    found = re.match(r"In '([^']+)': (\w+) .*\n(.*)", text)
    if not found:
        return ""
    file, kind, reason = found.groups()
    key = re.search(r"full_key: (\S+)", text)
    if not key:
        return f"{file}.yaml holds no settings; write a line for each: key: value"
    if key[1] == file.partition("/")[0] and command and key[1] in command.groups:
        return (
            f"{file}.yaml: its settings are for the whole command; begin it with the line {_GLOBAL}"
        )
    if kind in (ConfigKeyError.__name__, ConfigAttributeError.__name__):
        return f"{file}.yaml: {_unknown_key(ConfigKeyError(key[1]), command, key[1])}"
    return f"{file}.yaml: {_wrong_type(key[1], reason)}"


def _yaml_error(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a settings file"
    problem = getattr(error, "problem", None) or str(error)
    return f"{where} is not YAML ({_one_line(problem)}); write a line for each: key: value"


def _unknown_choice(text: str) -> str:
    """Shorten hydra's message about configuration groups; empty if it is about something else."""
    found = re.search(r"(?:Could not \w+|You must specify) '(\w+)/?([^']*)'", text)
    if not found or found[1] not in choices():
        return ""
    group, name = found.groups()
    valid = choices()[group]
    seen = f"{group} is {name!r}; {nearest(name, valid)}" if name else f"{group} is missing; "
    return f"{seen}choose one of {', '.join(valid)}"


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return " ".join(line for line in lines if line)
