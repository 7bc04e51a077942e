"""Until installations are renewed: ``simclr-inspect`` lies in ``jobs.commands.verify``."""

from jobs.commands.verify import inspect as main

__all__ = ["main"]
