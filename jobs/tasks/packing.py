"""The tasks on shards: settings of packing and verifying come in, a line of result goes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from jobs.cluster import ClusterConfig, Executor
from jobs.requeue import requeued_if_stopped
from jobs.runfolder import JOB_FOLDER
from jobs.tasks.task import again, alone
from preprocess.config import PackConfig, VerifyConfig
from preprocess.rejected import REJECTED_NAME
from preprocess.selection import spoken
from preprocess.shards.codec import check_codec
from preprocess.shards.manifest import Manifest, read_manifest
from simclr.config import require


class VerifyError(RuntimeError):
    """Packed shards are not what their manifest says."""


@dataclass(frozen=True)
class Pack:
    """Pack a source, or one part of it.

    Attributes:
        config: what is packed, and where to.
        part: number of this part and of all; None: every process finds its own from its place, as
            members of an array that plain sbatch started do.
    """

    config: PackConfig
    part: tuple[int, int] | None = None

    verb = "pack"
    checkpoint = __submitit_checkpoint__ = again

    @property
    def folder(self) -> Path:
        """Inside the working folder of packing, which readers of shards pass over."""
        return Path(self.config.output, "packing", JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for both folders, that there is something to read, and for the codec."""
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
        check_codec(self.config.compression)

    def members(self, cluster: ClusterConfig) -> tuple[list[Pack], ClusterConfig]:
        """Deal the parts out: to the members of an array on Slurm, else to processes."""
        if cluster.executor is not Executor.slurm:
            return [self], cluster
        # numbered here: of several arrays each counts its members from 0
        parts = [Pack(self.config, (part, cluster.parts)) for part in range(cluster.parts)]
        return parts, replace(cluster, nodes=1, tasks_per_node=1)

    def __call__(self) -> str:
        """Pack this process' part."""
        with requeued_if_stopped() as place:
            from preprocess.pack import pack

            part, num_parts = self.part or (
                place.array_index * place.num_ranks + place.rank,
                place.array_size * place.num_ranks,
            )
            manifest = pack(self.config, part, num_parts, place.is_main)
        # the part that ends last speaks for all
        return _summary(self.config, manifest) if manifest else ""


@dataclass(frozen=True)
class Finish:
    """Write the manifest of a source, or say which of its shards are missing.

    It runs after all members of an array, however they ended. The last member writes the manifest
    as well: this one is what later jobs wait for, and what tells of members that failed.
    """

    config: PackConfig

    verb = "finish"
    checkpoint = __submitit_checkpoint__ = again
    members = alone

    @property
    def folder(self) -> Path:
        """That of the parts."""
        return Path(self.config.output, "packing", JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for nothing: the parts have been asked for it."""

    def __call__(self) -> str:
        """Finish; raise ``PackError`` with the missing shards if there are any."""
        with requeued_if_stopped():
            from preprocess.finish import finish

            return _summary(self.config, finish(self.config))


def _summary(config: PackConfig, manifest: Manifest) -> str:
    kind = "simulated patches" if manifest.simulated else "patches"
    shards = len(manifest.shards)
    left_out = spoken(manifest.provenance.get("selection", {}))
    rejected = manifest.provenance["patches_rejected"]
    return "; ".join(
        part
        for part in (
            f"{config.output}: {manifest.rows} {kind} in {shards} shards, manifest written",
            f"{rejected} bad ones left out, listed in {REJECTED_NAME}" if rejected else "",
            left_out,
        )
        if part
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
        """Verify, and repair if asked to; raise ``VerifyError`` if problems are left."""
        with requeued_if_stopped() as place:
            from preprocess.repair import verify_and_repair
            from preprocess.verify import verify

            mended = 0
            if self.config.repair:
                report, mended = verify_and_repair(self.config, place.is_main)
            else:
                report = verify(self.config, place.is_main)
        if not report.ok:
            raise VerifyError(
                f"{self.config.shards}: {len(report.problems)} problems: "
                + "; ".join(str(problem) for problem in report.problems)
            )
        depth = "structure" if report.quick else "every checksum, statistics and label counts"
        kind = "simulated patches" if report.simulated else "patches"
        repaired = f"{mended} files repaired; " if mended else ""
        return (
            f"{self.config.shards}: {repaired}{report.rows} {kind}, {report.shards} shards, "
            f"{depth}: sound"
        )
