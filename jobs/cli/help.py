"""What ``--help`` shows: a verb's words, and the defaults of its dataclass, become a page."""

from __future__ import annotations

import textwrap
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from importlib.resources import files
from typing import Any, get_type_hints

from preprocess.sources import SOURCES

GROUPS = ("source", "recipe", "cluster", "scale")

_COMMON_END = """\
More:
  --cfg job          show the composed settings and leave
  -m key=a,b         run once for each value, in folders of their own
  debug=true         show where an error came from

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use;
inside a job also 75, stopped and saved: run again.
Errors are one line on stderr."""


@dataclass(frozen=True, slots=True)
class Help:
    """The words of one verb.

    Attributes:
        sentence: what it does.
        examples: commands that run.
        settings: key to meaning with unit, of those that people change.
        output: where results go.
        groups: configuration groups it takes.
    """

    sentence: str
    examples: tuple[str, ...]
    settings: dict[str, str]
    output: str
    groups: tuple[str, ...] = ("cluster",)


def render(verb: str, text: Help, app: type[Any]) -> str:
    """Return the help page of a verb; defaults are read from its dataclass."""
    available = choices()
    parts = [
        textwrap.fill(f"simclr-{verb}: {text.sentence}", 78),
        "Examples:\n" + "\n".join(f"  {example}" for example in text.examples),
        "Choices:\n" + "\n".join(_choice(group, available[group]) for group in text.groups),
        "Settings people change (default):\n"
        + "\n".join(_setting(key, meaning, app) for key, meaning in text.settings.items()),
        "Output:\n" + textwrap.fill(text.output, 76, initial_indent="  ", subsequent_indent="  "),
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


def default_of(key: str, app: type[Any]) -> object:
    """Return the default of a dotted key of a dataclass of settings.

    Raises:
        KeyError: there is no such setting.
    """
    head, _, rest = key.partition(".")
    if rest:
        return default_of(rest, get_type_hints(app)[head])
    entry = {entry.name: entry for entry in fields(app)}[head]
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return entry.default


def _choice(group: str, names: list[str]) -> str:
    return textwrap.fill(
        ", ".join(names), 78, initial_indent=f"  {group}= ", subsequent_indent=" " * 10
    )


def _setting(key: str, meaning: str, app: type[Any]) -> str:
    default = default_of(key, app)
    shown = "" if default in ("", []) else f" ({_short(default)})"
    return textwrap.fill(
        f"{meaning}{shown}", 78, initial_indent=f"  {key:<26} ", subsequent_indent=" " * 29
    )


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_short, value))}]"
    if isinstance(value, Enum):
        return value.name  # what hydra takes; the value may be words for a report
    return "none" if value is None else str(value)
