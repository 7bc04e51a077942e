"""The commands; the console script ``simclr-NAME`` calls the ``main`` of its module."""

from __future__ import annotations

from importlib import import_module

from jobs.launch import Command

# Commands with settings; status, chain and doctor parse their own arguments.
WITH_SETTINGS = ("fetch", "pack", "verify", "pretrain", "evaluate", "export", "inspect", "study")
_BESIDE = {"inspect": "verify", "export": "evaluate"}  # commands that share another's module


def load(name: str) -> type[Command]:
    """Return the command with a name in ``WITH_SETTINGS``; import no other module."""
    module = import_module(f"jobs.commands.{_BESIDE.get(name, name)}")
    found: type[Command] = getattr(module, name.capitalize())
    return found
