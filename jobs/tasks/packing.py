"""The tasks on shards: settings of packing and verifying come in, a line of result goes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from jobs.cluster import ClusterConfig, Executor
from jobs.requeue import requeued_if_stopped
from jobs.runfolder import JOB_FOLDER
from jobs.tasks.task import again, alone
from preprocess.config import PackConfig, VerifyConfig
from preprocess.selection import spoken
from preprocess.shards.manifest import read_manifest
from simclr.config import require


class VerifyError(RuntimeError):
    """Packed shards are not what their manifest says."""


@dataclass(frozen=True)
class Pack:
    """Pack a source; which part of it, every process finds from its place."""

    config: PackConfig

    verb = "pack"
    checkpoint = __submitit_checkpoint__ = again

    @property
    def folder(self) -> Path:
        """Inside the working folder of packing, which readers of shards pass over."""
        return Path(self.config.output, "packing", JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for both folders, and that there is something to read."""
        require(bool(self.config.output), "output is empty; give a folder: output=SHARDS")
        source = self.config.source
        require(
            bool(source.root),
            f"source.root is empty; give the folder of {source.kind}: source.root=DIR",
        )
        require(
            source.kind == "simulated" or Path(source.root).is_dir(),
            f"source.root is {source.root}, which is no folder",
        )

    def members(self, cluster: ClusterConfig) -> tuple[list[Pack], ClusterConfig]:
        """Deal the parts out: to the members of an array on Slurm, else to processes."""
        if cluster.executor is not Executor.slurm:
            return [self], cluster
        return [self] * cluster.parts, replace(cluster, nodes=1, tasks_per_node=1)

    def __call__(self) -> str:
        """Pack this process' part."""
        with requeued_if_stopped() as place:
            from preprocess.pack import pack

            part = place.array_index * place.num_ranks + place.rank
            num_parts = place.array_size * place.num_ranks
            manifest = pack(self.config, part, num_parts, place.is_main)
        if manifest is None:
            return ""  # the part that ends last speaks for all
        kind = "simulated patches" if manifest.simulated else "patches"
        shards = len(manifest.shards)
        left_out = spoken(manifest.provenance.get("selection", {}))
        return (
            f"{self.config.output}: {manifest.rows} {kind} in {shards} shards, manifest written"
            + (f"; {left_out}" if left_out else "")
        )


@dataclass(frozen=True)
class Verify:
    """Compare shards with their manifest."""

    config: VerifyConfig

    verb = "verify"
    checkpoint = __submitit_checkpoint__ = again
    members = alone

    @property
    def folder(self) -> Path:
        """Beside the records of packing."""
        return Path(self.config.shards, "packing", JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for a packed folder."""
        require(bool(self.config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        if not cluster.after:  # else a job before this one writes it
            read_manifest(Path(self.config.shards))

    def __call__(self) -> str:
        """Verify; raise ``VerifyError`` with all problems if there are any."""
        with requeued_if_stopped() as place:
            from preprocess.verify import verify

            report = verify(self.config, place.is_main)
        if not report.ok:
            raise VerifyError(
                f"{self.config.shards}: {len(report.problems)} problems: "
                + "; ".join(str(problem) for problem in report.problems)
            )
        depth = "structure" if report.quick else "every checksum, statistics and label counts"
        kind = "simulated patches" if report.simulated else "patches"
        return f"{self.config.shards}: {report.rows} {kind}, {report.shards} shards, {depth}: sound"
