"""``simclr-pack``: rasters become shards."""

from __future__ import annotations

from dataclasses import replace

from jobs import cli
from jobs.cluster import ClusterConfig, Executor
from jobs.help import Help
from jobs.launch import dispatch
from jobs.schema import PackApp, narrow
from jobs.tasks.packing import Finish, Pack
from preprocess.config import PackConfig

HELP = Help(
    sentence="pack Sentinel-2 rasters into shards with a manifest; run again, it goes on.",
    examples=(
        "simclr-pack source=simulated source.root=rasters output=shards",
        "simclr-pack source=bigearthnet_v1 source.root=BigEarthNet-v1.0 output=shards/v1",
        "simclr-pack source=eurosat source.root=EuroSAT_MS output=shards/eurosat cluster=laptop",
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
