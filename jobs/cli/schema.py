"""Settings on the command line: hydra's schemas are made from the dataclasses of the commands.

A schema has the settings of the command's ``Config``, flat, and beside them ``cluster`` and
``debug``.
"""

from __future__ import annotations

import math
from dataclasses import field, make_dataclass
from functools import cache
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from jobs.command import Command
from jobs.config import ClusterConfig
from preprocess.sources import SOURCES


@cache
def schema_of(command: type[Command]) -> type[Any]:
    """Return the dataclass of all settings of a command."""
    hints = get_type_hints(command.Config)
    # a group that is a setting (source=) has no default: the user must choose
    chosen = [(group, hints[group], MISSING) for group in command.groups if group in hints]
    own = [
        ("cluster", ClusterConfig, field(default_factory=ClusterConfig)),
        ("debug", bool, False),
    ]
    name = f"{command.__name__}Settings"
    return make_dataclass(name, [*chosen, *own], bases=(command.Config,), kw_only=True)


def register(command: type[Command]) -> None:
    """Give hydra the schemas that the yaml files in ``conf`` start from, which hold values only."""
    store = ConfigStore.instance()
    store.store(name=f"{command.name}_schema", node=schema_of(command))
    for kind, source in SOURCES.items():
        store.store(group="source", name=kind, node=source.config)


def to_settings(config: DictConfig) -> Any:
    """Return the checked settings of a command.

    Raises:
        ValueError: a value is refused; the message says which, and the fix.
        OmegaConfBaseException: a value is missing or cannot be resolved.
    """
    _refuse_endless(OmegaConf.to_container(config), "")
    try:
        return OmegaConf.to_object(config)
    except AttributeError as error:
        # ``++key=`` adds what the schema does not know; the dataclass has no place for it
        raise ValueError(f"{error}; leave it out: --help lists the settings") from error


def _refuse_endless(plain: Any, key: str) -> None:
    """Refuse ``inf`` and ``nan`` anywhere: they pass comparisons, and no setting means them."""
    if isinstance(plain, dict | list):
        entries = plain.items() if isinstance(plain, dict) else enumerate(plain)
        for name, value in entries:
            inner = f"{key}[{name}]" if isinstance(plain, list) else f"{key}.{name}"
            _refuse_endless(value, inner.removeprefix("."))
    elif isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"{key} is {plain}; give a number")
