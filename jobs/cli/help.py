"""The page of ``--help``: made from the docstrings and defaults of a command and its settings."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import MISSING, fields
from enum import Enum
from importlib.resources import files
from typing import Any, get_args, get_origin, get_type_hints

from jobs.cli.schema import schema_of, type_of
from jobs.command import Command
from preprocess.sources import SOURCES

GROUPS = ("source", "area", "recipe", "cluster", "scale")
WIDTH = 80

_COMMON_END = """\
More:
  --cfg job          show all settings as they are composed, and leave
  -m key=a,b         a sweep: run once for each value, in folders of their own
  --config-dir=DIR   take cluster/mine.yaml or recipe/ours.yaml from DIR
  --dry-run          show what would be run or submitted, and write nothing
  debug=true         show where an error came from

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use; inside a job
also 75: stopped and saved, run it again. Errors are one line on stderr."""


def help_page(command: type[Command]) -> str:
    """Return the page of a command, at most 80 columns wide."""
    schema, available = schema_of(command), choices()
    first = paragraphs(command)[0]
    summary = f"simclr-{command.name}: {first[0].lower()}{first[1:]}"
    parts = [
        textwrap.fill(summary, WIDTH),
        "Examples:\n" + "\n".join(f"  {example}" for example in command.examples),
        "Choices:\n"
        + "\n".join(_fill(f"  {group}= ", ", ".join(available[group])) for group in command.groups),
        "Settings people change (default):\n"
        + "\n".join(_setting(key, schema) for key in command.main_settings),
        "Output:\n" + _fill("  ", command.results),
        _COMMON_END,
    ]
    return "\n\n".join(parts)


def choices() -> dict[str, list[str]]:
    """Return the names that each configuration group offers: its yaml files, registered sources."""
    folder = files("jobs.conf")
    names = {
        group: {
            path.name.removesuffix(".yaml")
            for path in (folder / group).iterdir()
            if path.name.endswith(".yaml")
        }
        for group in GROUPS
    }
    names["source"] |= SOURCES.keys()
    return {group: sorted(offered) for group, offered in names.items()}


def default_of(key: str, schema: type[Any]) -> object:
    """Return the default of a dotted key of a dataclass of settings.

    Raises:
        KeyError: there is no such setting.
    """
    head, _, rest = key.partition(".")
    if rest:
        return default_of(rest, get_type_hints(schema)[head])
    entry = {entry.name: entry for entry in fields(schema)}[head]
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return entry.default


def description_of(key: str, schema: type[Any]) -> str:
    """Return what the docstring of a dataclass, or of one that it extends, says of a setting.

    Raises:
        KeyError: there is no such setting, or no docstring describes it.
    """
    head, _, rest = key.partition(".")
    if rest:
        return description_of(rest, get_type_hints(schema)[head])
    for kind in schema.__mro__:
        found = attributes(kind)
        if head in found:
            return found[head]
    raise KeyError(f"no docstring describes {key}")


def paragraphs(kind: type[Any]) -> list[str]:
    """Return the paragraphs of a class' own docstring, each as one line."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    return [" ".join(part.split()) for part in text.split("\n\n")]


def attributes(kind: type[Any]) -> dict[str, str]:
    """Return the ``Attributes:`` of a class' own docstring, each as one line."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    _, _, section = text.partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*\n?(?: {5,}.*\n?)*)", section, re.MULTILINE)
    return {name: " ".join(words.replace("``", "").split()) for name, words in entries}


def _setting(key: str, schema: type[Any]) -> str:
    default, kind = default_of(key, schema), type_of(key, schema)
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    shown = "" if default in ("", []) else f" ({_short(default)})"
    text = re.sub(r"(?<!\.)\.$", "", description_of(key, schema))
    names = [each.name for each in kind] if issubclass(kind, Enum) else []
    if not all(name in text for name in names):
        text += f"; one of {', '.join(names)}"
    return _fill(f"  {key:<26} ", f"{text}{shown}")


def _fill(first: str, text: str) -> str:
    indent = " " * (29 if len(first) > 20 else len(first))
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_short, value))}]"
    if isinstance(value, Enum):
        return value.name  # what hydra takes; the value may be words for a report
    return "none" if value is None else str(value)
