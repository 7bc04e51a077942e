"""Send the metrics of a run to trackers beside ``metrics.jsonl``; simclr-pretrain calls it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simclr.monitoring.metrics import Sink

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
# Position in the run: no curve of its own.
_POSITION = ("step", "num_steps", "epoch", "time")


class Tracking(Enum):
    """Where metrics go beside ``metrics.jsonl``."""

    none = "none"
    tensorboard = "tensorboard"


def sinks_of(tracking: Tracking, run_dir: Path) -> list[Sink]:
    """Return the metrics sinks of a setting.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    if tracking is Tracking.none:
        return []
    try:
        import tensorboard  # noqa: F401 - fail here, before hours of training
    except ImportError as error:
        raise ValueError(
            "tracking is tensorboard, which is not installed; pip install 'simclr-s2[tracking]', "
            "or tracking=none"
        ) from error
    return [TensorBoard(run_dir / FOLDER)]


class TensorBoard:
    """Writes every number of a record as a scalar."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, record: dict[str, Any]) -> None:
        """Write one record and flush it."""
        step = record["step"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A killed attempt may have written steps that are now repeated.
            self._writer = SummaryWriter(self._folder, purge_step=step)
        for name, value in record.items():
            if name not in _POSITION and isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
