"""Members of a sweep (``-m``) as hydra names them come in; one array of frozen members goes out.

hydra finds launchers in the namespace package ``hydra_plugins`` only, hence this folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

NAME = "simclr_slurm"


class FrozenSlurmLauncher(SlurmLauncher):  # type: ignore[misc]  # it comes without types
    """hydra-submitit-launcher, with its traps closed.

    That one composes each member again on its node, from files that may have changed meanwhile;
    it waits in the terminal until all of them end; and a member that fails ends its job with
    success. Here all members are composed and checked where the command is typed, each is written
    down like a single run, and one array is submitted without waiting for it.
    """

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose all members, run those that need no Slurm, submit the others as one array."""
        # hydra imports this module for every hydra application of the environment
        from jobs.cli.main import say
        from jobs.launch import collecting, submit_members

        one_by_one = BasicLauncher()
        one_by_one.setup(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=self.config,
        )
        with collecting() as members:
            composed = one_by_one.launch(job_overrides, initial_job_idx)
        for result in submit_members(members):
            say(result)
        return composed


_TARGET = f"{FrozenSlurmLauncher.__module__}.{FrozenSlurmLauncher.__qualname__}"
# Its settings are those of the plugin; conf/hydra_settings.yaml takes their values from cluster=.
ConfigStore.instance().store(
    group="hydra/launcher", name=NAME, node=SlurmQueueConf(_target_=_TARGET), provider="simclr-s2"
)
