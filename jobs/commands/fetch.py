"""``simclr-fetch``: get archives, or scenes of an area and time, in the form packing reads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobs import cli
from jobs.config import ClusterConfig
from jobs.launch import Command
from jobs.slurm.environment import RankEnvironment
from preprocess.config import FetchConfig, FetchTarget, read_polygons
from simclr.config import require

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetch(Command):
    """Fetch BigEarthNet, EuroSAT, or Sentinel-2 scenes of an area; run again, it continues."""

    config: FetchConfig

    name = "fetch"
    Config = FetchConfig
    home = ("output", "fetching")  # next to the scenes, in a folder that no source reads
    groups = ("area", "cluster")
    output_key = "output"
    examples = (
        "simclr-fetch what=bigearthnet_v2 output=BigEarthNet-v2",
        "simclr-fetch area=central_valley max_cloud=20 output=california \\\n"
        "               dates=[2019-01-01/2019-03-31,2019-07-01/2019-09-30] --dry-run",
        "simclr-fetch boxes=[[11.4,48.0,11.8,48.3]] dates=[2023-06-01/2023-08-31] \\\n"
        "               output=munich cluster=slurm_cpu_example",
    )
    main_settings = (
        *("what", "output", "boxes", "geojson", "dates", "max_cloud", "tiles", "whole_scenes"),
        *("max_gb", "streams", "url", "cluster.partition"),
    )
    results = (
        "A folder for each scene, and scenes.csv, which says of every scene found whether it was "
        "taken and why; or an archive, checked and unpacked. fetching/fetch.log in it has the log "
        "of every start. --dry-run prints scenes, patches, bytes and hours, and writes nothing. "
        "The network is needed: on a cluster name the partition that has it."
    )

    @property
    def root(self) -> str:
        """Folder for packing's ``source.root``."""
        inner = "EuroSAT_MS" if self.config.what is FetchTarget.eurosat else ""
        return str(Path(self.config.output, inner))

    def validate(self, cluster: ClusterConfig) -> None:
        """Require a folder, an area, and the libraries of the extra ``fetch``."""
        config, by_area = self.config, self.config.what is FetchTarget.stac
        require(bool(config.output), "output is empty; give the folder to fill: output=DIR")
        require(
            not by_area or bool(config.boxes or config.geojson),
            "what=stac needs an area: area=central_valley, "
            "boxes=[[west,south,east,north]] in degrees, or geojson=FILE",
        )
        if by_area and config.geojson:
            read_polygons(config.geojson)
        missing = [name for name in ("pystac_client", "zstandard") if find_spec(name) is None]
        packages = " ".join(missing).replace("_", "-")
        require(not missing, f"fetching needs packages that are missing: pip install {packages}")

    def preview(self) -> str:
        """Describe what there is to fetch, from the search and the file headers."""
        from preprocess.fetch import plan

        found = plan(self.config)
        lines = [self._counts(found)]
        if found.missing_bytes < found.bytes:
            lines.append(f"{found.missing_bytes / 1e9:.2f} GB of them are not there yet")
        if found.bytes_per_s:
            rate, hours = found.bytes_per_s, found.missing_bytes / found.bytes_per_s / 3600
            lines.append(f"{hours:.1f} hours at the {rate / 1e6:.0f} MB/s measured now")
        if found.missing_bytes > self.config.max_gb * 1e9:
            lines.append(f"more than max_gb={self.config.max_gb:g}: it would be refused")
        return "\n".join(lines)

    def run(self, env: RankEnvironment) -> str:
        """Fetch; raise ``FetchError`` if something could not be fetched."""
        from preprocess.fetch import fetch

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # warns of each cut-off, as we do
        path = self.job_dir.with_name("fetch.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        # also write the log, and the error that ended it, to a file, to be read hours later
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            result = self._counts(fetch(self.config))
            _log.info("%s", result)
        except BaseException as error:
            is_error = isinstance(error, Exception)
            end = str(error) if is_error else f"stopped by {type(error).__name__}"
            handler.handle(_log.makeRecord(_log.name, logging.ERROR, "", 0, end, (), None))
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()
        return result

    def _counts(self, found: Any) -> str:
        output, gigabytes = self.config.output, f"{found.bytes / 1e9:.2f} GB"
        if self.config.what is not FetchTarget.stac:
            return f"{output}: {self.config.what.value}, {found.found} files, {gigabytes}"
        scenes = f"{found.taken} of {found.found} scenes, at most {found.patches} patches"
        return f"{output}: {scenes}, {gigabytes}"


def main() -> None:
    """Console script."""
    cli.main(Fetch)


if __name__ == "__main__":
    main()
