"""``simclr-pack``: rasters become shards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from jobs.cli import main as cli
from jobs.cli.help import Help
from jobs.cli.schema import PackApp, narrow
from jobs.command import again, alone
from jobs.config import ClusterConfig, Executor
from jobs.launch import dispatch
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.preemption import requeued_if_stopped
from preprocess.config import PackConfig, VerifyConfig
from preprocess.plan import REJECTED_NAME, spoken
from preprocess.shards.compression import check_codec
from preprocess.shards.manifest import Manifest, read_manifest
from simclr.config import require


class VerifyError(RuntimeError):
    """Packed shards are not what their manifest says."""


@dataclass(frozen=True)
class Pack:
    """Pack a source, or one part of it.

    Attributes:
        config: what is packed, and where to.
        part: number of this part and of all; None: every process finds its own from its env, as
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
        with requeued_if_stopped() as env:
            from preprocess.pack import pack

            part, num_parts = self.part or (
                env.array_index * env.num_ranks + env.rank,
                env.array_size * env.num_ranks,
            )
            manifest = pack(self.config, part, num_parts, env.is_main)
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
            from preprocess.pack import finish

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
        with requeued_if_stopped() as env:
            from preprocess.verify import verify, verify_and_repair

            mended = 0
            if self.config.repair:
                report, mended = verify_and_repair(self.config, env.is_main)
            else:
                report = verify(self.config, env.is_main)
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


HELP = Help(
    sentence="pack Sentinel-2 rasters into shards with a manifest; run again, it goes on.",
    examples=(
        "simclr-pack source=simulated source.root=rasters output=shards",
        "simclr-pack source=bigearthnet_v1 source.root=BigEarthNet-v1.0 output=v1",
        "simclr-pack source=eurosat source.root=EuroSAT_MS output=shards cluster=laptop",
    ),
    groups=("source", "cluster"),
    settings={
        "source.root": "folder with the rasters",
        "source.bands": "bands to store, in order: [B02,B03,B04,B08]; default all there are",
        "source.name": "name of the source in the manifest; default the kind",
        "output": "folder for shards and manifest",
        "limit": "pack only so many patches; 0 packs all",
        "shard_size_mib": "size of a full shard, MiB of pixels",
        "compression": "none, gzip, bitshuffle-lz4 or zstd (the last two: pip extra compression)",
        "on_error": "a bad patch: quarantine lists it and goes on, stop ends",
        "max_rejected": "share of bad patches that is tolerated, 0 to 1",
        "cluster.tasks_per_node": "parts packed side by side on one machine",
        "cluster.parts": "members of the job array on Slurm",
    },
    output="Shards, manifest.json and rejected.jsonl go to output; the manifest is written last "
    "and means that packing is complete. stdout names it, or on Slurm the job that writes it "
    "after all members of the array: cluster.after=JOB lets another job wait for it.",
)


def work(app: PackApp, member: str | None) -> str:
    """Pack, or submit the packing; return what was done."""
    config = narrow(app, PackConfig)
    config.output = member or config.output
    result = dispatch(Pack(config), app.cluster, in_sweep=member is not None)
    submitted = app.cluster.executor is Executor.slurm and not app.cluster.dry_run
    if not (submitted and result) or member is not None:
        return result
    return dispatch(Finish(config), _after(app.cluster, result))


def _after(cluster: ClusterConfig, jobs: str) -> ClusterConfig:
    # afterany: with afterok, a member that failed would leave the last job waiting for ever
    dependency = {"dependency": f"afterany:{jobs}"}
    return replace(cluster, after=None, extra={**cluster.extra, **dependency})


def main() -> None:
    """Console script."""
    cli.main("pack", work, HELP)


if __name__ == "__main__":
    main()
