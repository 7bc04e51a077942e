"""``simclr-pack``: rasters become shards."""

from __future__ import annotations

from jobs import cli
from jobs.help import Help
from jobs.launch import dispatch
from jobs.schema import PackApp, narrow
from jobs.tasks.packing import Pack
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
        "on_error": "a bad patch: quarantine lists it and goes on, stop ends",
        "max_rejected": "share of bad patches that is tolerated, 0 to 1",
        "cluster.tasks_per_node": "parts packed side by side on one machine",
        "cluster.parts": "members of the job array on Slurm",
    },
    output="Shards, manifest.json and rejected.jsonl go to output; the manifest is written last "
    "and means that packing is complete. stdout names it.",
)


def work(app: PackApp, member: str | None) -> str:
    """Pack, or submit the packing; return what was done."""
    config = narrow(app, PackConfig)
    config.output = member or config.output
    return dispatch(Pack(config), app.cluster, in_sweep=member is not None)


def main() -> None:
    """Console script."""
    cli.main("pack", work, HELP)


if __name__ == "__main__":
    main()
