"""Files for other programs give the encoder's representations there."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig, EncoderName, ModelConfig
from simclr.data.dataset import open_dataset
from simclr.data.loader import Loader
from simclr.export import ExportConfig, ExportFormat
from simclr.export import export as module
from simclr.export.export import export
from simclr.export.load import load_encoder, read_card
from simclr.model.pretrained import load_pretrained
from simclr.model.simclr import build_encoder

BANDS = ["B04", "B03", "B02", "B08"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedded(trained_run):
    """Return stored values (16, 4, 12, 12) and what training's own path makes of them."""
    dataset = open_dataset([str(trained_run.shards)], BANDS)
    maker = ViewMaker(dataset, AugmentConfig(preset="none"), 0, CPU)
    rows = torch.arange(16).numpy()
    (batch,) = Loader(dataset, lambda _: rows, num_batches=1, batch_size=16, device=CPU)
    # band groups hold more than the encoder reads: its channels in its order
    layout = dataset.layouts[0][0]
    channels = [layout.bands.index(band) for band in BANDS]
    patches = batch.groups[layout.name][:, channels].float()
    encoder = load_pretrained(trained_run.folder, CPU).encoder
    with torch.inference_mode():
        return patches, encoder(maker.eval_views(batch))


def run_onnx(folder, patches):
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    return torch.from_numpy(session.run(None, {"patches": patches.numpy()})[0])


def close(found, expected, tolerance):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_graphs_on_stored_values_give_what_training_saw(exported_formats, embedded):
    patches, expected = embedded
    program = torch.export.load(exported_formats / "encoder.pt2").module()
    for batch in (1, 16):
        assert close(program(patches[:batch]), expected[:batch], 1e-4)
        assert close(run_onnx(exported_formats, patches[:batch]), expected[:batch], 1e-4)


def test_timm_gives_our_representations(exported_formats):
    network = timm.create_model("resnet18", in_chans=4, num_classes=0)
    # the small stem of this run; a standard one needs neither line
    network.conv1, network.maxpool = nn.Conv2d(4, 64, 3, 1, 1, bias=False), nn.Identity()
    state = torch.load(next(exported_formats.glob("encoder-*.pth")), weights_only=True)
    assert network.load_state_dict(state, strict=False).missing_keys == []
    views = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(3))
    expected = load_encoder(exported_formats, BANDS)(views)
    torch.testing.assert_close(network.eval()(views), expected, rtol=1e-5, atol=1e-5)


def test_a_standard_stem_loads_into_timm_as_it_is():
    encoder = build_encoder(ModelConfig(encoder=EncoderName.resnet50), 12).eval()
    views = torch.randn(1, 12, 64, 64, generator=torch.Generator().manual_seed(3))
    network = timm.create_model("resnet50", in_chans=12, num_classes=0)
    network.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(network.eval()(views), encoder(views), rtol=1e-5, atol=1e-5)


def test_every_file_carries_the_card_and_no_path(exported_formats, trained_run):
    card = read_card(exported_formats)
    inside = json.loads(onnx.load(exported_formats / "encoder.onnx").metadata_props[0].value)
    extra = {"card.json": ""}
    torch.export.load(exported_formats / "encoder.pt2", extra_files=extra)
    assert inside == json.loads(extra["card.json"])
    assert inside == {key: card[key] for key in inside}
    for path in exported_formats.iterdir():
        content = path.read_bytes()
        for trace in (sys.prefix, str(trained_run.folder), "/simclr/export/"):
            assert trace.encode() not in content, (path.name, trace)


def test_the_card_lists_the_files_with_checksum_and_input(exported_formats):
    files = {one["format"]: one for one in read_card(exported_formats)["files"]}
    assert sorted(files) == ["onnx", "pt2", "pth"]
    assert files["onnx"]["input"] == "stored values, normalised inside as those of arrays"
    for one in files.values():
        assert module.sha256_of(exported_formats / one["file"]) == one["sha256"]
    assert "| `encoder.onnx` | stored values" in (exported_formats / "CARD.md").read_text()


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(exported_formats, trained_run):
    arguments = [f"run={trained_run.folder}", f"output={exported_formats}"]
    code = "import sys; from jobs.commands.evaluate import export; export()"
    command = [sys.executable, "-c", code, *arguments, "formats=[pth,pt2,onnx]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr  # an output with other bytes is refused
    assert done.stdout == f"{exported_formats}\n"
    # nothing of what the exporters of torch and ONNX print of themselves
    assert [line.split(" ", 2)[2].split()[0] for line in done.stderr.splitlines()] == ["exported"]


def test_a_graph_that_differs_is_not_published(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run_onnx", lambda _, patches: torch.ones(len(patches), 512))
    config = ExportConfig(
        run=str(trained_run.folder), output=str(tmp_path / "out"), formats=[ExportFormat.onnx]
    )
    with pytest.raises(RuntimeError, match=r"encoder\.onnx differs from the encoder by"):
        export(config)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(trained_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    config = ExportConfig(
        run=str(trained_run.folder), output=str(tmp_path / "out"), formats=[ExportFormat.onnx]
    )
    with pytest.raises(ImportError, match=r"onnxruntime: pip install onnx onnxscript onnxruntime"):
        export(config)


def test_a_step_that_was_not_saved_names_those_that_were(trained_run, tmp_path):
    config = ExportConfig(run=str(trained_run.folder), output=str(tmp_path / "out"), step=1)
    with pytest.raises(ValueError, match="no checkpoint of step 1; there are: 2"):
        export(config)
