"""``simclr-pack``: pack rasters into shards, in parts that run in parallel."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from jobs import cli
from jobs.config import ClusterConfig, Executor
from jobs.launch import Command
from jobs.slurm.environment import RankEnvironment
from preprocess.config import PackConfig
from preprocess.plan import REJECTED_NAME, describe_dropped
from preprocess.shards.manifest import MANIFEST_NAME, Manifest
from simclr.config import require


@dataclass(frozen=True)
class Pack(Command):
    """Pack Sentinel-2 rasters into shards with a manifest; run again, it continues."""

    config: PackConfig
    # index of this part, and number of parts; None: each process derives them from its rank and its
    # place in a job array, such as one started by plain sbatch
    part: tuple[int, int] | None = None

    name = "pack"
    Config = PackConfig
    home = ("output", "packing")  # the working folder of packing, which readers of shards ignore
    groups = ("source", "cluster")
    output_key = "output"
    examples = (
        "simclr-pack source=simulated source.root=rasters output=shards",
        "simclr-pack source=bigearthnet_v1 source.root=BigEarthNet-v1.0 \\\n"
        "              output=shards/v1",
        "simclr-pack source=eurosat source.root=EuroSAT_MS output=shards/eurosat \\\n"
        "              cluster=laptop",
    )
    main_settings = (
        *("source.root", "source.bands", "source.name", "output", "limit", "shard_size_mib"),
        *("compression", "on_error", "max_rejected", "cluster.tasks_per_node", "cluster.parts"),
    )
    results = (
        "Shards, manifest.json and rejected.jsonl go to output; the manifest is written last "
        "and means that packing is complete. stdout names it, or on Slurm the job that writes it "
        "after all tasks of the array: cluster.after=JOB lets another job wait for it."
    )

    def validate(self, cluster: ClusterConfig) -> None:
        """Refuse missing or invalid settings, all in one message."""
        from preprocess.pack import check_settings

        # a previous job may write the rasters
        check_settings(self.config, root_exists=not cluster.after)
        if self.part is None and cluster.executor is Executor.here:
            # if the array's tasks are not 0, 1, 2, ..., no task would pack some of the parts
            count, last = (os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("COUNT", "MAX"))
            require(
                count is None or last is None or int(count) == int(last) + 1,
                f"the job array has {count} tasks up to number {last}, but parts are numbered from "
                f"0 without gaps; submit it with --array=0-{int(count or 1) - 1}",
            )

    @property
    def is_done(self) -> bool:
        """Whether it was packed, and the manifest is still there."""
        return super().is_done and Path(self.config.output, MANIFEST_NAME).is_file()

    def split(self, cluster: ClusterConfig) -> tuple[list[Self], ClusterConfig]:
        """Return one task per part on Slurm; locally, each process is a part."""
        if cluster.executor is not Executor.slurm:
            return [self], cluster
        # numbered here, as each of several arrays counts its tasks from 0
        parts = [replace(self, part=(part, cluster.parts)) for part in range(cluster.parts)]
        return parts, replace(cluster, nodes=1, tasks_per_node=1)

    def incomplete(self, env: RankEnvironment) -> str:
        """Name the part that this process packed, and the shards that are still missing."""
        from preprocess.pack import describe_missing

        output, (part, num_parts) = Path(self.config.output), self._part(env)
        missing = describe_missing(output)
        if num_parts == 1 or not missing:
            return ""
        return (
            f"{output}: part {part} of {num_parts} (from 0) packed; {missing} yet; the other parts "
            "pack them, each in a process of this step or job array"
        )

    def follow_up(self) -> Command:
        """Write the manifest once all parts have ended."""
        return FinishPack(self.config)

    def run(self, env: RankEnvironment) -> str:
        """Pack this process' part; the last part to end returns the summary."""
        from preprocess.pack import pack

        part, num_parts = self._part(env)
        manifest = pack(self.config, part, num_parts, env.is_main)
        return _summary(self.config, manifest) if manifest else ""

    def _part(self, env: RankEnvironment) -> tuple[int, int]:
        own = env.array_index * env.num_ranks + env.rank
        return self.part or (own, env.array_size * env.num_ranks)


@dataclass(frozen=True)
class FinishPack(Command):
    """Write the manifest of packed shards, or name the missing ones.

    Runs after all tasks of an array, however they ended. Though the last of them also writes the
    manifest, later jobs wait for this one, which reports failed tasks.
    """

    config: PackConfig

    name = "finish"
    Config = PackConfig
    home = Pack.home

    def run(self, env: RankEnvironment) -> str:
        """Finish; raise ``PackError`` with the missing shards, if any."""
        from preprocess.pack import finish

        return _summary(self.config, finish(self.config))


def _summary(config: PackConfig, manifest: Manifest) -> str:
    kind = "simulated patches" if manifest.simulated else "patches"
    layout, shards = manifest.layout, len(manifest.shards)
    size_mb = sum(shard.size_bytes for shard in manifest.shards) / 1e6
    tasks = [f"{each.name} ({len(each.classes)} classes)" for each in layout.label_sets]
    rejected = manifest.provenance["patches_rejected"]
    parts = (
        f"{config.output}: {manifest.rows} {kind} in {shards} shard{'s' * (shards > 1)}, "
        f"{size_mb:.1f} MB, manifest written",
        f"{len(layout.bands)} bands, {layout.groups[0].size_px} pixels of "
        f"{layout.groups[0].ground_resolution_m:g} m",
        f"tasks: {', '.join(tasks)}" if tasks else "no labels",
        f"{rejected} bad ones left out, listed in {REJECTED_NAME}" if rejected else "",
        describe_dropped(manifest.provenance.get("selection", {})),
    )
    return "; ".join(part for part in parts if part)


def main() -> None:
    """Console script."""
    cli.main(Pack)


if __name__ == "__main__":
    main()
