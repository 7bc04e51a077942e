"""The commands: each module is the console script ``simclr-NAME``."""

from __future__ import annotations

from importlib import import_module

from jobs.command import Command

# Those with settings; status, chain and doctor read their own arguments.
WITH_SETTINGS = ("fetch", "pack", "verify", "pretrain", "evaluate", "export", "inspect", "study")


def load(name: str) -> type[Command]:
    """Return the command of a name in ``WITH_SETTINGS``; the others are not imported."""
    found: type[Command] = getattr(import_module(f"jobs.commands.{name}"), name.capitalize())
    return found
