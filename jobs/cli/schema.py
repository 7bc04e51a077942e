"""Build hydra's schemas and the ``--help`` pages from the dataclasses of the commands.

A schema has the settings of the command's ``Config`` at its top level, plus ``cluster`` and
``debug``. Called by the command line and by simclr-chain.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from jobs.config import ClusterConfig
from jobs.launch import Command
from preprocess.config import SourceConfig
from preprocess.sources import SOURCES


@cache
def schema_of(command: type[Command]) -> type[Any]:
    """Return the dataclass of all settings of a command."""
    hints = get_type_hints(command.Config)
    # a group that is a setting (source=) has no default: the user must choose
    chosen = [(group, hints[group], MISSING) for group in command.groups if group in hints]
    own = [("cluster", ClusterConfig, field(default_factory=ClusterConfig)), ("debug", bool, False)]
    name = f"{command.__name__}Settings"
    return make_dataclass(name, [*chosen, *own], bases=(command.Config,), kw_only=True, slots=True)


def register(command: type[Command]) -> None:
    """Register the schemas that the yaml files in ``conf``, which only hold values, extend."""
    store = ConfigStore.instance()
    store.store(name=f"{command.name}_schema", node=schema_of(command))
    for kind, source in SOURCES.items():
        store.store(group="source", name=kind, node=source.config)


def to_settings(config: DictConfig) -> Any:
    """Return the checked settings of a command.

    ValueError: a value is invalid. OmegaConfBaseException: one is missing or cannot be resolved.
    """
    _refuse_non_finite(OmegaConf.to_container(config), "")
    try:
        return OmegaConf.to_object(config)
    except AttributeError as error:
        # ``++key=`` adds keys that are not in the schema, and so not in the dataclass
        name = str(error).rpartition(" attribute ")[2]
        raise ValueError(f"{name} is not a setting; leave it out") from error


# A word that hydra parses as a number or a boolean, between brackets and commas.
_NUMBER_LIKE = re.compile(
    r"(?<![^,\[])\s*([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[+-]?\d[\d_]*)?|[+-]?(?:inf|nan)"
    r"|true|false)\s*(?![^,\]])",
    re.IGNORECASE,
)
_TWINS = {"run": "run_dir", "run_dir": "run"}  # the same folder, as two commands name it


def as_meant(setting: str, schema: type[Any]) -> str:
    """Rewrite a setting as typed so that hydra parses it as the type in the schema.

    Text stays text (``output=2024_01_15`` is not a number), a single value is accepted for a list,
    and ``run=`` and ``run_dir=`` are interchangeable.
    """
    key, equals, value = setting.partition("=")
    name = key.lstrip("+~")
    sign = key[: len(key) - len(name)]
    known = get_type_hints(schema)
    if name not in known and _TWINS.get(name) in known:
        name = _TWINS[name]
    kind = type_of(name, schema)
    inner = get_args(kind)[0] if get_origin(kind) is list else kind
    if kind == dict[str, str] and not set(value) & set("'\"\\(["):
        value = re.sub(r"(?<=:)\s*([^,{}$]+?)\s*(?=[,}])", r'"\1"', value)
    # quoted, interpolated or computed: the user knows hydra's grammar
    if not equals or not value or set(value) & set("'\"\\(${"):
        return f"{sign}{name}{equals}{value}"
    if inner is str:
        value = _NUMBER_LIKE.sub(r'"\1"', value)
    single = "," not in value
    if kind is str and single and value[0] == "[" and value[-1] == "]":
        value = value[1:-1] or value
    if get_origin(kind) is list and single and value[0] != "[" and value != "null":
        value = f"[{value}]"
    return f"{sign}{name}{equals}{value}"


def refuse_misread(path: Path, schema: type[Any]) -> None:
    """Refuse a text setting in a user's file that YAML parses as a number or a boolean.

    ``run_dir: 2024_01_15`` would become the folder 20240115.
    """
    text = path.read_text(encoding="utf-8")
    package = "" if "@package _global_" in text else f"{path.parent.name}."
    pending = [(package.rstrip("."), yaml.compose(text))]
    while pending:
        key, node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            pending += [(f"{key}.{name.value}".lstrip("."), value) for name, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += [(key, entry) for entry in node.value]
        elif isinstance(node, yaml.ScalarNode) and node.style is None:
            kind = type_of(key, schema)
            inner = get_args(kind)[0] if get_origin(kind) is list else kind
            read = OmegaConf.select(OmegaConf.create(f"value: {node.value}"), "value")
            # for sbatch's own options a boolean is intended: a flag without a value
            is_flag = isinstance(read, bool) and key.startswith("cluster.extra.")
            if inner is str and read is not None and str(read) != node.value and not is_flag:
                raise ValueError(
                    f"{path.parent.name}/{path.name}: {key} is {node.value}, which YAML reads as "
                    f'{read}; write "{node.value}"'
                )


def type_of(key: str, schema: type[Any]) -> Any:
    """Return the type of a dotted key, without its ``| None``; None if there is no such setting."""
    kind: Any = schema
    for name in key.split("."):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        kinds = [kind]
        if kind is SourceConfig:
            kinds += [each.config for each in SOURCES.values()]
        hints = [get_type_hints(each) for each in kinds if is_dataclass(each)]
        kind = next((each[name] for each in hints if name in each), None)
        if get_origin(kind) is UnionType:
            kind = next(each for each in get_args(kind) if each is not NoneType)
    return kind


def _refuse_non_finite(plain: Any, key: str) -> None:
    """Refuse ``inf`` and ``nan``, which may pass range checks, as no setting allows them."""
    if isinstance(plain, dict | list):
        entries = plain.items() if isinstance(plain, dict) else enumerate(plain)
        for name, value in entries:
            inner = f"{key}[{name}]" if isinstance(plain, list) else f"{key}.{name}"
            _refuse_non_finite(value, inner.removeprefix("."))
    elif isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"{key} is {plain}; give a number")


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
    """Return the ``--help`` page of a command, at most 80 columns wide."""
    schema, available = schema_of(command), choices()
    first = paragraphs(command)[0]
    summary = f"simclr-{command.name}: {first[0].lower()}{first[1:]}"
    offered = [_fill(f"  {group}= ", ", ".join(available[group])) for group in command.groups]
    changed = [_setting(key, schema) for key in command.main_settings]
    parts = [
        textwrap.fill(summary, WIDTH),
        "\n".join(["Examples:", *(f"  {example}" for example in command.examples)]),
        "\n".join(["Choices:", *offered]),
        "\n".join(["Settings people change (default):", *changed]),
        "Output:\n" + _fill("  ", command.results),
        _COMMON_END,
    ]
    return "\n\n".join(parts)


def choices() -> dict[str, list[str]]:
    """Return the choices of each configuration group: its yaml files, and registered sources."""
    offered: dict[str, list[str]] = {}
    for group in GROUPS:
        names = [path.name for path in (files("jobs.conf") / group).iterdir()]
        found = {name.removesuffix(".yaml") for name in names if name.endswith(".yaml")}
        offered[group] = sorted(found | SOURCES.keys() if group == "source" else found)
    return offered


def default_of(key: str, schema: type[Any]) -> object:
    """Return the default of a dotted key in a settings dataclass, or raise KeyError."""
    head, _, rest = key.partition(".")
    if rest:
        return default_of(rest, get_type_hints(schema)[head])
    entry = {entry.name: entry for entry in fields(schema)}[head]
    if entry.default_factory is not NO_DEFAULT:
        return entry.default_factory()
    return entry.default


def description_of(key: str, schema: type[Any]) -> str:
    """Return the description of a setting from the docstring of its dataclass, or of a base class.

    It is the entry under ``Attributes:``, as one line. KeyError: no docstring describes it.
    """
    head, _, rest = key.partition(".")
    if rest:
        return description_of(rest, get_type_hints(schema)[head])
    for kind in schema.__mro__:
        text = inspect.cleandoc(vars(kind).get("__doc__") or "")
        section = text.partition("Attributes:\n")[2]
        found = re.search(rf"^    {head}: (.*\n?(?: {{5,}}.*\n?)*)", section, re.MULTILINE)
        if found:
            return " ".join(found[1].replace("``", "").split())
    raise KeyError(f"no docstring describes {key}")


def paragraphs(kind: type[Any]) -> list[str]:
    """Return the paragraphs of a class' own docstring, each joined to one line."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    return [" ".join(part.split()) for part in text.split("\n\n")]


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
    wrapper = textwrap.TextWrapper(
        WIDTH, first, indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(text)


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_short, value))}]"
    if isinstance(value, Enum):
        return value.name  # what hydra accepts; the value may be words for a report
    return "none" if value is None else str(value)
