"""The training story: settings in, the last checkpoint's folder out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simclr.config import TrainConfig, require
from simclr.metrics import Sink
from simclr.preemption import Preempted, PreemptionGuard, Stop
from simclr.run import Run
from simclr.step import train_step
from simclr.world import Launch, open_world


def train(config: TrainConfig, sinks: Sequence[Sink] = (), launch: Launch | None = None) -> Path:
    """Pretrain an encoder, or go on with it, and return the last checkpoint's folder.

    Every rank calls it with the same settings. Without a ``launch`` the ranks are found through
    torchrun's variables; without those the world is this process alone.

    Raises:
        ValueError: settings, shards or run folder do not fit; the message says what and the cure.
        Preempted: a stop signal came; all ranks have saved at the same step.
    """
    require(bool(config.run_dir), "run_dir is empty; give a folder for the run, run_dir=DIR")
    with PreemptionGuard() as guard, open_world(config.world, launch) as world:
        run = Run(config, world, sinks)
        run.resume()
        while run.step < run.num_steps:
            run.observe(train_step(run, next(run.batches)))
            stop = Stop(world.agree(guard.requested))  # all ranks leave at the same step
            if stop or run.checkpoint_is_due():
                run.save()
            if stop:
                raise Preempted(run.step, stop)
        return run.save()
