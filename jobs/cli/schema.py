"""Settings as hydra composes them come in, checked dataclasses go out.

Each verb has one top-level class: the settings of the work, flat, and beside them where it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from jobs.config import ClusterConfig, InspectConfig, StudyConfig
from jobs.tracking import Tracking
from preprocess.config import PackConfig, SourceConfig, VerifyConfig
from preprocess.sources import SOURCES
from simclr.config import TrainConfig
from simclr.evaluation.config import EvaluateConfig
from simclr.export.config import ExportConfig

_Config = TypeVar("_Config")


@dataclass(kw_only=True, slots=True)
class PackApp(PackConfig):
    """``simclr-pack``."""

    source: SourceConfig = MISSING
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: bool = False


@dataclass(kw_only=True, slots=True)
class VerifyApp(VerifyConfig):
    """``simclr-verify``."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: bool = False


@dataclass(kw_only=True, slots=True)
class PretrainApp(TrainConfig):
    """``simclr-pretrain``."""

    tracking: Tracking = Tracking.none
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: bool = False


@dataclass(kw_only=True, slots=True)
class EvaluateApp(EvaluateConfig):
    """``simclr-evaluate``."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: bool = False


@dataclass(kw_only=True, slots=True)
class ExportApp(ExportConfig):
    """``simclr-export``."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: bool = False


@dataclass(kw_only=True, slots=True)
class StudyApp(StudyConfig):
    """``simclr-study``."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: bool = False


@dataclass(kw_only=True, slots=True)
class InspectApp(InspectConfig):
    """``simclr-inspect``."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    debug: bool = False


App = PackApp | VerifyApp | PretrainApp | EvaluateApp | ExportApp | StudyApp | InspectApp

APPS: dict[str, type[App]] = {
    "pack": PackApp,
    "verify": VerifyApp,
    "pretrain": PretrainApp,
    "evaluate": EvaluateApp,
    "export": ExportApp,
    "study": StudyApp,
    "inspect": InspectApp,
}


def register() -> None:
    """Give hydra the schemas: ``<verb>_schema``, and ``source/<kind>`` from the sources' registry.

    The yaml files in ``conf`` start from these and hold values only.
    """
    store = ConfigStore.instance()
    for verb, app in APPS.items():
        store.store(name=f"{verb}_schema", node=app)
    for kind, source in SOURCES.items():
        store.store(group="source", name=kind, node=source.config)


def to_app(config: DictConfig) -> App:
    """Return the checked settings of a verb.

    Raises:
        ValueError: a value is refused; the message says which and the cure.
        OmegaConfBaseException: a value is missing or cannot be resolved.
    """
    _refuse_endless(OmegaConf.to_container(config), "")
    try:
        return cast(App, OmegaConf.to_object(config))
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


def narrow(app: Any, kind: type[_Config]) -> _Config:
    """Return the part of a verb's settings that the work itself knows."""
    return kind(**{entry.name: getattr(app, entry.name) for entry in fields(cast(Any, kind))})


def to_yaml(plain: dict[str, Any]) -> str:
    """Return plain settings as YAML, in their order."""
    return str(OmegaConf.to_yaml(OmegaConf.create(plain)))


def read_yaml(text: str) -> dict[str, Any]:
    """Return plain settings from ``to_yaml``.

    Raises:
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"not readable as YAML ({error})") from error
    if not isinstance(plain, dict):
        raise ValueError("not a mapping")
    return cast(dict[str, Any], plain)
