"""Launcher of sweeps (``-m``): every run is composed here, and one job array is submitted.

hydra finds launchers in the namespace package ``hydra_plugins`` only, hence this folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

NAME = "simclr_slurm"


class FrozenSlurmLauncher(SlurmLauncher):  # type: ignore[misc]  # it comes without types
    """hydra-submitit-launcher, with its traps closed.

    That one composes each run again on its node, from files that may have changed meanwhile; it
    waits in the terminal until all of them end; and a run that fails ends its job with success.
    Here all are composed and checked where the command is typed, each is recorded like a single
    run, and those for Slurm are submitted as one array without waiting for it.
    """

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose all runs of the sweep, then run or submit them."""
        # hydra imports this module for every hydra application of the environment
        from jobs.cli import say
        from jobs.launch import Command, run_all

        one_by_one = BasicLauncher()
        one_by_one.setup(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        composed = one_by_one.launch(job_overrides, initial_job_idx)
        values = [each.return_value for each in composed]
        # a function of another application has done its work by now, and returns what it likes
        found = [one for one in values if isinstance(one, tuple) and one]
        for result in run_all([one for one in found if isinstance(one[0], Command)]):
            say(result)
        return composed


_TARGET = f"{FrozenSlurmLauncher.__module__}.{FrozenSlurmLauncher.__qualname__}"
# No settings of its own: cluster= says where and with what the runs go.
ConfigStore.instance().store(
    group="hydra/launcher", name=NAME, node={"_target_": _TARGET}, provider="simclr-s2"
)
