"""From labelled GeoTIFFs to a map: fine-tune an exported encoder in plain PyTorch.

    python examples/finetune.py --encoder encoder --patches labelled --unit stored \
        --scene scene.tif --map map.tif

PATCHES holds GeoTIFFs, one folder a class, or any folders beside a table: --labels labels.csv with
columns id, label and, if wanted, split. Bands are found by their descriptions (B02, B03, ...), or
named in the files' order with --bands. The map has one pixel a patch, in the grid of the scene.
What the card of the encoder does not allow is refused: other bands, numbers of another unit.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.enums import Resampling
from rasterio.windows import Window
from torch import Tensor, nn

from preprocess.bands import canonical_name
from simclr.export import PatchUnit
from simclr.export.load import check_unit, load_encoder, read_card

NODATA_CLASS = 255
TOLERANCE = 0.02  # pixels of EuroSAT are 9.93 to 10.06 m wide
STORED_PER_UNIT = {"stored": 1.0, "reflectance": 10_000.0}


@dataclass(frozen=True)
class Reader:
    """Reads patches with an encoder's bands, in its order, size and unit."""

    bands: list[str]
    size_px: int
    unit: PatchUnit
    offset: int
    file_bands: list[str]

    def read(self, file: rasterio.DatasetReader, window: Window | None = None) -> Tensor:
        """Return a file or window as (C, S, S) float32 reflectance x 10000, 0 for nodata."""
        channels = self._channels(file)
        shape = (len(channels), self.size_px, self.size_px)
        values = file.read(channels, window=window, out_shape=shape, resampling=Resampling.bilinear)
        empty = ~np.isfinite(values) | (values == 0)
        if file.nodata is not None:
            empty |= values == file.nodata
        patch = torch.from_numpy(np.where(empty, 0, values).astype(np.float32))
        try:
            check_unit(patch[None], self.unit)
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from error
        stored = patch * STORED_PER_UNIT[self.unit.value] + self.offset
        return torch.where(patch == 0, 0.0, stored.clamp(min=1))

    def _channels(self, file: rasterio.DatasetReader) -> list[int]:
        if self.file_bands and len(self.file_bands) != file.count:
            named = f"--bands names {len(self.file_bands)}"
            raise ValueError(f"{file.name} has {file.count} bands, {named}")
        if not self.file_bands and not all(file.descriptions):
            raise ValueError(f"{file.name} does not name its bands; give --bands=B02,B03,...")
        held = [canonical_name(name) for name in self.file_bands or file.descriptions]
        missing = [band for band in self.bands if band not in held]
        if missing:
            wanted = ", ".join(self.bands)
            raise ValueError(f"{file.name} has no {missing[0]}; the encoder reads {wanted}")
        return [held.index(band) + 1 for band in self.bands]


def labels_of(folder: Path, table: Path | None) -> dict[Path, tuple[str, str]]:
    """Return class and split by file, from a table or from the names of class folders."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".tif", ".tiff"))
    if not files:
        raise ValueError(f"--patches is {folder}, which holds no GeoTIFF")
    if table is None:
        found = {path: (path.parent.name, "") for path in files if path.parent != folder}
    else:
        rows = read_table(table)
        ids = {path: path.relative_to(folder).with_suffix("").as_posix() for path in files}
        keys = {path: next((k for k in (ids[path], path.stem) if k in rows), "") for path in files}
        found = {path: rows[key] for path, key in keys.items() if key and rows[key][0]}
        print(f"{len(files) - len(found)} of {len(files)} files have no label in {table}")
    if len({label for label, _ in found.values()}) < 2:
        raise ValueError("fewer than two classes are labelled; give class folders, or --labels")
    return found


def read_table(path: Path) -> dict[str, tuple[str, str]]:
    """Return class and split by id."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = {"id", "label"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column {missing.pop()!r}; give id, label and split")
        return {row["id"]: (row["label"], row.get("split") or "") for row in reader}


def held_out(splits: list[str]) -> tuple[Tensor, Tensor]:
    """Return training and test rows: by the table's splits, else a random quarter for testing."""
    if "test" in splits:
        trained = [row for row, split in enumerate(splits) if split in ("train", "")]
        tested = [row for row, split in enumerate(splits) if split == "test"]
        return torch.tensor(trained), torch.tensor(tested)
    order = torch.randperm(len(splits))
    return order[len(order) // 4 :], order[: len(order) // 4]


class Classifier(nn.Module):
    """Encoder and linear layer; inputs are normalised by the statistics of the training patches."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int, patches: Tensor) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, num_classes)
        seen = torch.where(patches == 0, torch.nan, patches)
        mean = seen.nanmean((0, 2, 3), keepdim=True)
        std = (seen - mean).square().nanmean((0, 2, 3), keepdim=True).sqrt().clamp(min=1)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits (B, classes) of stored values (B, C, S, S)."""
        return self.head(
            self.encoder(torch.where(patches == 0, 0.0, (patches - self.mean) / self.std))
        )


def train(network: Classifier, patches: Tensor, truth: Tensor, rows: Tensor, epochs: int) -> float:
    """Train all weights, the encoder's at a lower rate; return the last loss."""
    optimizer = torch.optim.AdamW(
        [
            {"params": network.encoder.parameters(), "lr": 1e-4},
            {"params": network.head.parameters(), "lr": 1e-2},
        ]
    )
    loss = torch.tensor(torch.nan)
    network.train()
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(16):
            if len(batch) > 1:  # BatchNorm needs at least two
                loss = nn.functional.cross_entropy(network(patches[batch]), truth[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    network.eval()  # for prediction, BatchNorm must not mix the patches of a batch
    return float(loss.detach())


@torch.inference_mode()
def write_map(
    network: Classifier, reader: Reader, scene_path: Path, path: Path, ground: tuple, classes: list
) -> None:
    """Classify a scene patch by patch; each pixel of the map is one patch."""
    patch_px, pixel = ground
    with rasterio.open(scene_path) as scene:
        if abs(scene.transform.a / pixel - 1) > TOLERANCE:
            found = f"pixels of {scene.transform.a:g}, the labelled files of {pixel:g}"
            raise ValueError(f"{scene_path} has {found}; resample one of them")
        height, width = scene.height // patch_px, scene.width // patch_px
        found = np.full((height, width), NODATA_CLASS, np.uint8)
        for row in range(height):
            corners = [(column * patch_px, row * patch_px) for column in range(width)]
            windows = [Window(*corner, patch_px, patch_px) for corner in corners]
            line = torch.stack([reader.read(scene, window) for window in windows])
            empty = (line == 0).all(dim=(1, 2, 3)).numpy()
            found[row] = np.where(empty, NODATA_CLASS, network(line).argmax(1).numpy())
        profile = {"driver": "GTiff", "height": height, "width": width, "count": 1}
        grid = scene.transform * rasterio.Affine.scale(patch_px)
        with rasterio.open(
            path, "w", **profile, dtype="uint8", crs=scene.crs, transform=grid, nodata=NODATA_CLASS
        ) as file:
            file.write(found, 1)
            file.update_tags(1, **{f"class_{number}": name for number, name in enumerate(classes)})
    print(f"{path}: {width} x {height} patches of {', '.join(classes)}")


def main(options: argparse.Namespace) -> None:
    """Read, train, test and map."""
    card = read_card(options.encoder)
    bands = [band["name"] for band in card["bands"]]
    unit = PatchUnit(options.unit)
    named = options.bands.split(",") if options.bands else []
    reader = Reader(bands, card["size_px"], unit, options.offset, named)
    encoder = load_encoder(options.encoder, bands, processing_level=options.processing_level)
    labelled = labels_of(options.patches, options.labels)
    classes = sorted({label for label, _ in labelled.values()})
    if len(classes) >= NODATA_CLASS:
        raise ValueError(f"{len(classes)} classes are more than the {NODATA_CLASS - 1} of a map")
    stack, grounds = [], []
    for path in labelled:
        with rasterio.open(path) as file:
            grounds.append((file.width, file.transform.a))
            stack.append(reader.read(file))
    widths, pixels = zip(*grounds, strict=True)
    if len(set(widths)) > 1 or max(pixels) > min(pixels) * (1 + TOLERANCE):
        found = f"{min(widths)} to {max(widths)} pixels of {min(pixels):g} to {max(pixels):g}"
        raise ValueError(f"the files have {found}; give patches of one size on the ground")
    patches = torch.stack(stack)
    truth = torch.tensor([classes.index(label) for label, _ in labelled.values()])

    torch.manual_seed(options.seed)
    trained, tested = held_out([split for _, split in labelled.values()])
    network = Classifier(encoder, card["width"], len(classes), patches[trained])
    network.encoder.requires_grad_(True)
    loss = train(network, patches, truth, trained, options.epochs)
    with torch.inference_mode():
        parts = [network(patches[rows]).argmax(1) for rows in tested.split(64)]
    accuracy = (torch.cat(parts) == truth[tested]).float().mean() if parts else torch.nan
    print(f"loss {loss:.3f}, accuracy {accuracy:.2f} on {len(tested)} patches held out")
    if options.scene:
        write_map(network, reader, options.scene, options.map, grounds[0], classes)


def parse() -> argparse.Namespace:
    """Return the command-line options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--encoder", type=Path, required=True, help="folder that simclr-export wrote")
    add("--patches", type=Path, required=True, help="folder of labelled GeoTIFFs")
    add("--labels", type=Path, help="CSV with id, label and split; without: folders are classes")
    add(
        "--unit", choices=STORED_PER_UNIT, required=True, help="reflectance x 10000, or reflectance"
    )
    add("--offset", type=int, default=0, help="-1000 if the files still hold ESA's offset")
    add("--processing-level", default="", help="L1C or L2A, to be compared with the encoder's")
    add("--bands", default="", help="names of the files' bands, in order")
    add("--epochs", type=int, default=20)
    add("--seed", type=int, default=0)
    add("--scene", type=Path, help="GeoTIFF to be mapped")
    add("--map", type=Path, default=Path("map.tif"))
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main(parse())
    except (ValueError, OSError, rasterio.errors.RasterioError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        sys.exit(2)
