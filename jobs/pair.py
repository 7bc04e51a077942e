"""torch and torchvision as installed come in; one line says that they belong together, or not.

A build of torch for CPUs beside a torchvision for CUDA installs without complaint and fails at
its first use. Run ``python -m jobs.pair`` after installing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version

CURE = "reinstall both at once: pip install --force-reinstall -c constraints.txt torch torchvision"


def check_pair() -> str:
    """Return a line on the pair.

    Raises:
        RuntimeError: they do not work together; the message says which they are, and the cure.
    """
    pair = f"torch {version('torch')} and torchvision {version('torchvision')}"
    try:
        import_module("simclr.model.simclr")
        torch = import_module("torch")
        torch.ops.torchvision.nms  # noqa: B018 - the operator that a wrong pair lacks
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise RuntimeError(f"{pair} do not belong together ({error}); {CURE}") from error
    gpus = torch.cuda.device_count()
    return f"{pair} belong together; {gpus or 'no'} GPU{'s' if gpus != 1 else ''} here"


def main() -> int:
    """Print the line; 1 if the pair is broken."""
    try:
        sys.stdout.write(f"{check_pair()}\n")
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
