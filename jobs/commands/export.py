"""Until installations are renewed: ``simclr-export`` lies in ``jobs.commands.evaluate``."""

from jobs.commands.evaluate import export as main

__all__ = ["main"]
