"""Launcher of sweeps (``-m``): composes every run here, and submits them as one job array.

Hydra finds launchers only in the namespace package ``hydra_plugins``, hence this folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

NAME = "simclr_slurm"


class FrozenSlurmLauncher(SlurmLauncher):  # type: ignore[misc]  # it comes without types
    """hydra-submitit-launcher without its pitfalls.

    The original composes each run again on its node, from files that may have changed meanwhile;
    waits in the terminal until all runs end; and lets the job of a failed run end with success.
    This one composes and checks all runs where the command is typed, records each like a single
    run, and submits those for Slurm as one array without waiting for it.
    """

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose all runs of the sweep, then run or submit them."""
        # imported late: every hydra application in the environment imports this module
        from jobs.cli import say
        from jobs.launch import Command, run_all

        one_by_one = BasicLauncher()
        one_by_one.setup(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        composed = one_by_one.launch(job_overrides, initial_job_idx)
        values = [each.return_value for each in composed]
        # the function of another application has already run, and may return anything
        found = [one for one in values if isinstance(one, tuple) and one]
        for result in run_all([one for one in found if isinstance(one[0], Command)]):
            say(result)
        return composed


_TARGET = f"{FrozenSlurmLauncher.__module__}.{FrozenSlurmLauncher.__qualname__}"
# No settings of its own: cluster= selects where the runs go, and their resources.
ConfigStore.instance().store(
    group="hydra/launcher", name=NAME, node={"_target_": _TARGET}, provider="simclr-s2"
)
