"""The members of a sweep (``-m``) come in; one job array of frozen members goes out.

hydra-submitit-launcher waits in the terminal until all members end, composes each member again on
its node, from files that may have changed, and lets Slurm take a failed member for a success. Here
a member is an ordinary task: composed, checked and written down when it is submitted.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from jobs.launch import Request, collecting, submit_all
from jobs.runfolder import JOB_FOLDER

MAX_NAME = 200  # of the 255 bytes that file systems give to a name


class SweepLauncher(SlurmLauncher):  # type: ignore[misc]  # hydra's plugins come without types
    """Runs members where their cluster says: here one after another, on Slurm as one array."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run or submit the members; those that are done are left out."""
        setup_globals()
        names = member_names(job_overrides)
        with collecting() as requests:
            returned = [
                self._run(list(overrides), name, initial_job_idx + k)
                for k, (overrides, name) in enumerate(zip(job_overrides, names, strict=True))
            ]
        _submit(requests, Path(str(self.config.hydra.sweep.dir)))
        return returned

    def _run(self, overrides: list[str], name: str, number: int) -> JobReturn:
        """Compose a member and let the verb do with it what it does with a single run."""
        settings = [*overrides, f"hydra.sweep.subdir='{name}'"]
        config: Any = self.hydra_context.config_loader.load_sweep_config(self.config, settings)
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def member_names(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """Name each member by the settings in which it differs from another, for its folder.

    The same command gives the same names, so that members find what they have done.
    """
    first = set(job_overrides[0])
    shared = first.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
    return [_file_name([o for o in overrides if o not in shared]) for overrides in job_overrides]


def _file_name(overrides: list[str]) -> str:
    # a slash would be a folder, and quotes would end the setting that carries the name
    words = [re.sub(r"[/\s'\"\\]+", "-", word) for word in overrides]
    name = ",".join(words) or "member"
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9]}-{crc32(name.encode()):08x}"


def _submit(requests: list[Request], folder: Path) -> None:
    # members of one array ask for the same; a sweep over nodes becomes several arrays
    for _, group in itertools.groupby(requests, lambda request: request.needs):
        members = list(group)
        tasks = [member.task for member in members]
        print(submit_all(tasks, folder / JOB_FOLDER, members[0].needs))  # noqa: T201
