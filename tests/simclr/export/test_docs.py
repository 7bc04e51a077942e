"""What the pages show of an exported encoder runs as it stands, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from preprocess.shards.format import sha256_of
from simclr.checkpoint.manifest import read_checkpoint_manifest, write_manifest
from simclr.export import ExportConfig, ExportFormat
from simclr.export.export import export

DOCS = Path(__file__).resolve().parents[3] / "docs"
BANDS = ("B04", "B03", "B02", "B08")
LEVELS = {"water": 300, "forest": 1200, "sand": 2600}  # stored values that tell classes apart
PATCH_PX = 12


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def run(code, folder):
    path = Path(folder, "page.py")
    path.write_text(code)
    repository = str(DOCS.parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {repository!r}); {_RUN}"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_RUN = "import runpy; runpy.run_path('page.py')"


def write_raster(path, values, corner=(600_000, 4_000_000), pixel_m=10):
    """Write values (C, H, W) as a GeoTIFF with named bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width = values.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": len(BANDS)}
    transform = rasterio.Affine(pixel_m, 0, corner[0], 0, -pixel_m, corner[1])
    with rasterio.open(
        path, "w", **profile, dtype="uint16", crs="EPSG:32610", transform=transform
    ) as file:
        file.write(values.astype(np.uint16))
        file.descriptions = BANDS


def patch_of(level, random, size_px=PATCH_PX):
    slope = np.array([1.0, 0.9, 0.8, 1.5])[:, None, None]
    return level * slope + random.normal(0, 60, (len(BANDS), size_px, size_px)).clip(-200, 200)


@pytest.mark.slow
def test_labelled_geotiffs_become_a_classifier_and_a_map_of_a_scene(exported, tmp_path):
    random = np.random.default_rng(0)
    for name, level in LEVELS.items():
        for number in range(16):
            path = tmp_path / "labelled" / name / f"{number}.tif"
            write_raster(path, patch_of(level, random))
    names = sorted(LEVELS)
    truth = random.integers(0, len(names), (4, 5))
    rows = [
        np.concatenate([patch_of(LEVELS[names[number]], random) for number in line], axis=2)
        for line in truth
    ]
    scene = np.concatenate(rows, axis=1)
    scene[:, :PATCH_PX, :PATCH_PX] = 0
    write_raster(tmp_path / "scene.tif", scene)
    shutil.copytree(exported, tmp_path / "encoder")

    stdout = fine_tune(tmp_path)

    assert re.search(r"accuracy (0\.9\d|1\.00) on 12 patches held out", stdout)
    assert "map.tif: 5 x 4 patches of forest, sand, water" in stdout
    with rasterio.open(tmp_path / "map.tif") as file:
        found, transform, tags = file.read(1), file.transform, file.tags(1)
        assert (file.crs.to_epsg(), file.nodata) == (32610, 255)
    assert found[0, 0] == 255
    known = found != 255
    assert known.sum() == truth.size - 1
    assert np.mean(found[known] == truth[known]) >= 0.9
    assert (transform.a, transform.e) == (120, -120)
    assert (transform.c, transform.f) == (600_000, 4_000_000)
    assert [tags[f"class_{number}"] for number in range(3)] == names


def fine_tune(folder, *changes):
    """Run the page's own command, with further options."""
    (block,) = re.findall(
        r"```bash\n(python .*?)```", (DOCS / "fine-tuning.md").read_text(), re.DOTALL
    )
    words = shlex.split(block.replace("\\\n", " "))
    assert (words[0], words[1]) == ("python", "examples/finetune.py")
    done = subprocess.run(
        [sys.executable, str(DOCS.parent / words[1]), *words[2:], *changes],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(DOCS.parent)},
        capture_output=True,
        text=True,
        timeout=1200,  # two cores at load 20 took 300 s
        check=False,
    )
    assert done.returncode == (2 if "finetune: " in done.stderr else 0), done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_fine_tuning_takes_the_table_of_packing_and_refuses_what_does_not_fit(exported, tmp_path):
    random = np.random.default_rng(0)
    lines = ["id,label,split"]
    for number, (name, level) in enumerate([*LEVELS.items()] * 8):
        pixel_m = 10 + number % 2 * 0.05  # as those of EuroSAT differ
        path = tmp_path / "labelled" / f"p{number}.tif"
        write_raster(path, patch_of(level, random), pixel_m=pixel_m)
        lines.append(f"p{number},{name},{'test' if number >= 18 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    write_raster(tmp_path / "scene.tif", patch_of(1200, random))
    shutil.copytree(exported, tmp_path / "encoder")
    table = "--labels=labels.csv"
    assert "on 6 patches held out" in fine_tune(tmp_path, table)
    assert "p0.tif: the patches are said to be reflectance, but the median" in fine_tune(
        tmp_path, table, "--unit=reflectance"
    )
    assert "p0.tif has no B04; the encoder reads B04, B03, B02, B08" in fine_tune(
        tmp_path, table, "--bands=B01,B02,B03,B08"
    )
    assert "fewer than two classes" in fine_tune(tmp_path)
    write_raster(tmp_path / "labelled" / "p0.tif", patch_of(1200, random), pixel_m=20)
    assert "pixels of 10 to 20; give patches of one size" in fine_tune(tmp_path, table)


@pytest.mark.slow
def test_every_way_to_load_an_encoder_gives_the_same(exported_formats, tmp_path):
    shutil.copytree(exported_formats, tmp_path / "encoder")
    check = """
views = (patches - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
scale = 1e-4 * h.abs().max()
assert (torch.from_numpy(h_onnx) - h).abs().max() <= scale
assert (h_torch - h).abs().max() <= scale
torch.testing.assert_close(network.eval()(Normalize(mean, std)(patches)), h, rtol=1e-5, atol=1e-5)
torch.testing.assert_close(Normalize(mean, std)(patches), views)
assert h_of_two_bands.shape == h.shape
network.load_state_dict(state)
"""
    run("\n".join([*python_blocks("using-an-encoder.md"), check]), tmp_path)


@pytest.mark.slow
def test_the_weights_of_a_second_export_are_its_own_whatever_is_cached(
    exported_formats, trained_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    run_dir = tmp_path / "run"
    shutil.copytree(trained_run.folder, run_dir)
    [checkpoint] = (run_dir / "checkpoints").glob("step-*")
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    state["encoder"]["conv1.weight"] *= 2
    torch.save(state, checkpoint / "state.pt")
    manifest = read_checkpoint_manifest(checkpoint)
    path = checkpoint / "state.pt"
    manifest.files["state.pt"] = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_manifest(checkpoint, manifest)
    second = ExportConfig(
        run=str(run_dir), output=str(tmp_path / "second"), formats=[ExportFormat.pth]
    )
    folders = {"first": exported_formats, "second": export(second)}
    code = "".join(python_blocks("using-an-encoder.md")[-1])
    prepare = """
import torch
from simclr.export.load import load_encoder, read_card
card = read_card("encoder")
bands = [band["name"] for band in card["bands"]]
"""
    check = """
encoder = load_encoder("encoder", bands)
views = torch.randn(2, len(bands), card["size_px"], card["size_px"])
h = encoder(views)
encoder.load_state_dict(state)
torch.testing.assert_close(encoder(views), h)
"""
    for name, folder in folders.items():
        shutil.copytree(folder, tmp_path / name / "work" / "encoder")
        run("\n".join([prepare, code, check]), tmp_path / name / "work")
