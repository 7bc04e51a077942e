"""Settings as plain JSON types: written down, read back, hashed and compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from simclr.config import TrainConfig, require

_Config = TypeVar("_Config")


def to_plain(config: Any) -> dict[str, Any]:
    """Return a dataclass of settings as plain JSON types, choices by the names that people type."""
    plain: dict[str, Any] = json.loads(
        json.dumps(asdict(config), default=lambda choice: choice.name)
    )
    return plain


def from_plain(kind: type[_Config], data: dict[str, Any]) -> _Config:
    """Rebuild a dataclass of settings from ``to_plain``.

    Raises:
        ValueError: a key is unknown, or a value is refused.
    """
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - {entry.name for entry in fields(kind)})  # type: ignore[arg-type]
    require(not unknown, f"unknown settings of {kind.__name__}: {', '.join(unknown)}")
    values = {}
    for name, value in data.items():
        hint = hints[name]
        nested = isinstance(hint, type) and is_dataclass(hint)
        values[name] = from_plain(hint, value) if nested else value
    return kind(**values)


# What may change between two attempts of one run: where it lies, how it is watched and where it
# ends, but nothing that would give other weights at a step.
_FREE_TO_CHANGE = (
    *("run_dir", "shards", "max_steps", "log_every_steps", "max_skipped_steps"),
    *("world", "checkpoint", "monitor"),
)
_FREE_DATA = ("num_threads", "num_slots")


def binding_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide the weights; a run goes on only with the same ones."""
    plain = to_plain(config)
    for name in _FREE_TO_CHANGE:
        del plain[name]
    for name in _FREE_DATA:
        del plain["data"][name]
    return plain


def config_hash(config: TrainConfig) -> str:
    """Return sixteen hex digits of the binding settings."""
    text = json.dumps(binding_settings(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_settings(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return ``key: old, now new`` for each setting that differs between two plain configs."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differing_settings(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before}, now {after}")
    return lines
