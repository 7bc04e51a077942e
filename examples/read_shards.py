"""Read packed shards with h5py alone: verify every checksum, and print what the samples hold.

    python examples/read_shards.py SHARDS [--show 5]

Nothing of simclr-s2 is imported: copy its two functions into any program. docs/shard-format.md has
the format.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

Sample = tuple[str, dict[str, np.ndarray], dict[str, list[str]]]


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a packed folder, checked."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if (manifest["format"], manifest["format_version"]) != ("simclr-s2-shard", 1):
        raise ValueError(f"{folder} has format {manifest['format']} {manifest['format_version']}")
    expected = manifest.pop("sha256")
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{folder}/manifest.json does not match its checksum")
    return manifest


def read_samples(folder: Path) -> Iterator[Sample]:
    """Yield id, pixels (bands, H, W) by band group, and class names by label set."""
    manifest = read_manifest(folder)
    layout = manifest["layout"]
    for shard in manifest["shards"]:
        # locking=False: network file systems often refuse locks, and shards never change
        with h5py.File(folder / shard["file"], "r", locking=False) as file:
            for row in range(shard["rows"]):
                pixels, checksum, labels = {}, 0, {}
                for group in layout["groups"]:
                    pixels[group["name"]] = file[f"patches/{group['name']}"][row]
                    checksum = zlib.crc32(pixels[group["name"]].tobytes(), checksum)
                if checksum != file["index/crc32"][row]:
                    raise ValueError(f"{shard['file']}, row {row}: a pixel has changed")
                for label_set in layout["label_sets"]:
                    values = file[f"labels/{label_set['name']}"][row]
                    if not (values == 255).all():  # else nobody has labelled this sample
                        names = zip(label_set["classes"], values, strict=True)
                        labels[label_set["name"]] = [name for name, value in names if value]
                yield file["index/id"][row].decode(), pixels, labels


def main() -> None:
    """Print the first samples and the total number."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, help="packed folder")
    parser.add_argument("--show", type=int, default=5, help="samples to print (5)")
    options = parser.parse_args()
    count = 0
    for name, pixels, labels in read_samples(options.shards):
        if count < options.show:
            shapes = ", ".join(f"{group} {planes.shape}" for group, planes in pixels.items())
            print(f"{name}: {shapes}; {labels or 'unlabelled'}")
        count += 1
    print(f"{count} samples, every checksum correct")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"read_shards: {error}", file=sys.stderr)
        sys.exit(2)
