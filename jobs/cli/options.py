"""What a person typed comes in, in any order and spelling; what hydra understands goes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from simclr.config import require

SWEEP = frozenset({"-m", "--multirun"})


def naming(settings: Sequence[str]) -> list[str]:
    """Return the settings that let hydra name each member's folder by its swept values alone.

    The same command gives the same names, so that members find what they have done.
    """
    parsed = OverridesParser.create().parse_overrides(list(settings))
    same = [one.get_key_element() for one in parsed if not one.is_sweep_override()]
    keys = ",".join(key.lstrip("+~") for key in same)
    return [f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"]


# Options that people know from other commands, and what they are called here.
SPELLINGS = {
    "--dry-run": "cluster.dry_run=true",
    "dry_run=true": "cluster.dry_run=true",
    "--all-checkpoints": "all_checkpoints=true",
}

# Settings of hydra-submitit-launcher, and what they are called here if otherwise.
LAUNCHER = "hydra.launcher."
LAUNCHER_SETTINGS = {
    "timeout_min": "time_min",
    "mem_gb": "memory_gb",
    "array_parallelism": "parallel_parts",
    "additional_parameters": "extra",
    **dict.fromkeys(("partition", "account", "qos", "constraint", "exclude"), ""),
    **dict.fromkeys(("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node"), ""),
    **dict.fromkeys(("signal_delay_s", "setup"), ""),
}

CONFIG_DIR = frozenset({"--config-dir", "-cd"})
HELP = frozenset({"--help", "-h"})

# hydra's, of which its own parser says more than a line when one is misspelt
_FLAGS = SWEEP | {"--resolve", "--version", "--hydra-help"}
_WITH_VALUE = {
    "--cfg": ("job", "hydra", "all"),
    "-c": ("job", "hydra", "all"),
    "--package": (),
    "-p": (),
    **dict.fromkeys(CONFIG_DIR, ()),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "-i": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}


def understood(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with options first: hydra's parser takes none after a setting.

    Raises:
        ValueError: an option is unknown, or its value is.
    """
    options: list[str] = []
    settings: list[str] = []
    words = iter([SPELLINGS.get(word, word) for word in arguments])
    for word in words:
        if word.startswith("-"):
            options += _option(word, words)
        else:
            require(not word.startswith("="), f"{word!r} has no key in front; write key=value")
            settings.append(_of_launcher(word) if word.startswith(LAUNCHER) else word)
    return [*options, *settings, *(naming(settings) if SWEEP & set(options) else [])]


def _option(word: str, following: Iterator[str]) -> list[str]:
    name, equals, value = word.partition("=")
    if word in _FLAGS:
        return [word]
    require(
        name in _WITH_VALUE,
        f"{word} is no option; there are --help, --cfg job, -m for sweeps, --config-dir=DIR, "
        "--dry-run; settings have no dashes: key=value",
    )
    value = value if equals else next(following, "")
    allowed = _WITH_VALUE[name]
    require(bool(value), f"{name} needs a value: {name} {allowed[0] if allowed else 'VALUE'}")
    if name in CONFIG_DIR:
        return [name, config_dir(value)]
    require(
        not allowed or value in allowed,
        f"{name} is {value!r}; choose one of {', '.join(allowed)}",
    )
    return [name, value]


def config_dir(folder: str) -> str:
    """Return the folder given by ``--config-dir``.

    Raises:
        ValueError: it is none; hydra would only warn, or say so in its own words.
    """
    require(
        Path(folder or "/dev/null").is_dir(),
        f"--config-dir is {folder!r}, which is no folder; give the one in which cluster/mine.yaml "
        "or recipe/ours.yaml lies",
    )
    return folder


def _of_launcher(word: str) -> str:
    name, _, value = word.removeprefix(LAUNCHER).partition("=")
    require(
        name in LAUNCHER_SETTINGS,
        f"{LAUNCHER}{name} has no meaning here; cluster= says where jobs run, and of the "
        f"launcher's settings these are understood: {', '.join(sorted(LAUNCHER_SETTINGS))}; any "
        "other option of sbatch is +cluster.extra.NAME=VALUE",
    )
    return f"cluster.{LAUNCHER_SETTINGS[name] or name}={value}"
