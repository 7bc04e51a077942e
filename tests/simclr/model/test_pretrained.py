"""Weights of other bands and other people's files."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from simclr.config import EncoderName, ModelConfig, Stem
from simclr.export import ExportConfig
from simclr.export.export import export
from simclr.export.load import load_encoder
from simclr.model.pretrained import adapt_kernel, load_encoder_file, start_from
from simclr.model.simclr import build_encoder

RGB = ["B04", "B03", "B02"]
CPU = torch.device("cpu")


def fresh(bands, **changes):
    return build_encoder(ModelConfig(encoder=EncoderName.resnet18, **changes), len(bands))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A torchvision ResNet-18 for three channels with its classifier, as others publish it."""
    torch.manual_seed(5)
    network = resnet18().eval()
    folder = tmp_path_factory.mktemp("published")
    torch.save({"state_dict": network.state_dict()}, folder / "rgb.pt")
    save_file(network.state_dict(), folder / "rgb.safetensors")
    return network, folder


@pytest.mark.parametrize("name", ["rgb.pt", "rgb.safetensors"])
def test_a_file_of_the_same_bands_is_taken_as_it_is(published, name):
    network, folder = published
    encoder = fresh(RGB).eval()
    start_from(encoder, folder / name, RGB, RGB)
    views = torch.randn(2, 3, 64, 64)
    network.fc = nn.Identity()
    assert torch.equal(encoder(views), network(views))


def test_an_input_equal_in_all_bands_gives_the_activation_it_gave_before(published):
    network, folder = published
    bands = ["B02", "B03", "B04", "B08", "B11"]
    grey = torch.randn(2, 1, 64, 64)
    expected = network.conv1(grey.expand(-1, 3, -1, -1))
    encoder = fresh(bands)
    start_from(encoder, folder / "rgb.pt", bands, [])
    torch.testing.assert_close(
        encoder.conv1(grey.expand(-1, 5, -1, -1)), expected, atol=1e-5, rtol=0
    )


def test_named_bands_keep_their_kernels_and_others_take_the_mean():
    kernel = torch.arange(6.0).view(1, 3, 1, 2)
    adapted = adapt_kernel(kernel, ["B02", "B08", "B04"], RGB)
    mean = kernel.mean(1)
    assert torch.equal(adapted, torch.stack([kernel[:, 2], mean, kernel[:, 0]], 1))
    with pytest.raises(ValueError, match="names 2 bands, the file's first layer has 3"):
        adapt_kernel(kernel, RGB, ["B02", "B03"])


def test_files_that_do_not_fit_are_refused_with_the_cure(published, tmp_path):
    _, folder = published
    with pytest.raises(ValueError, match=r"first layer of 7x7, model.stem asks for 3x3"):
        start_from(fresh(RGB, stem=Stem.small), folder / "rgb.pt", RGB, [])
    other = build_encoder(ModelConfig(encoder=EncoderName.resnet34), 3)
    with pytest.raises(ValueError, match=r"lacks layer.* set model.encoder"):
        start_from(other, folder / "rgb.pt", RGB, [])
    with pytest.raises(ValueError, match="is not a file"):
        start_from(fresh(RGB), tmp_path / "none.pt", RGB, [])
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "head.pt")
    with pytest.raises(ValueError, match=r"has no conv1\.weight"):
        start_from(fresh(RGB), tmp_path / "head.pt", RGB, [])
    torch.save(torch.zeros(1), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="holds no weights by name"):
        start_from(fresh(RGB), tmp_path / "bare.pt", RGB, [])


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b'{"format": 1}', b"PK\x03\x04 cut off", bytes(64)])
def test_what_is_no_file_of_weights_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read; give a \.safetensors, or a \.pt"):
        start_from(fresh(RGB), tmp_path / name, RGB, [])


def test_a_file_of_unknown_bands_for_another_number_of_them_says_what_was_done(published, caplog):
    _, folder = published
    bands = [*RGB, "B08"]
    start_from(fresh(bands), folder / "rgb.pt", bands, RGB)
    assert not caplog.records
    start_from(fresh(bands), folder / "rgb.pt", bands, [])
    assert "reads 3 bands of unknown names, the run 4" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder."])
def test_a_file_describes_its_own_network_whatever_wraps_its_names(published, tmp_path, prefix):
    network, _ = published
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    torch.save({"model": state}, tmp_path / "wrapped.pt")
    encoder = load_encoder_file(tmp_path / "wrapped.pt", RGB, CPU)
    views = torch.randn(2, 3, 64, 64)
    network.fc = nn.Identity()
    torch.testing.assert_close(encoder(views), network(views))


@pytest.mark.parametrize("bands", [["B02", "B03", "B04"], ["B01", "B02", "B03", "B04"]])
def test_weights_for_three_bands_see_red_green_and_blue_in_whatever_order_they_come(
    published, bands
):
    network, folder = published
    encoder = load_encoder_file(folder / "rgb.pt", bands, CPU)
    network.fc = nn.Identity()
    views = torch.randn(2, len(bands), 64, 64)
    seen = views[:, [bands.index(band) for band in RGB]]
    torch.testing.assert_close(encoder(views), network(seen))


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    """An export of an encoder of B04, B03, B02, B08."""
    output = tmp_path_factory.mktemp("exported") / "encoder"
    return export(ExportConfig(run=str(trained_run.folder), output=str(output)))


def test_an_export_sees_its_own_bands_wherever_they_are_in_a_view(exported):
    bands = ["B08", "B02", "B03", "B04", "B11"]
    views = torch.randn(2, 5, 12, 12)
    expected = load_encoder(exported, [*RGB, "B08"])(views[:, [3, 2, 1, 0]])
    for path in (exported, exported / "encoder.safetensors"):
        torch.testing.assert_close(load_encoder_file(path, bands, CPU)(views), expected)
        with pytest.raises(ValueError, match=r"reads B04, B03, B02, B08, the run 4: B02, B03, B04"):
            load_encoder_file(path, ["B02", "B03", "B04", "B11"], CPU)


def test_a_pretraining_that_starts_from_an_export_gives_each_band_its_kernel(exported):
    bands = ["B08", "B02", "B03", "B04"]
    encoder = fresh(bands, stem=Stem.small)
    start_from(encoder, exported / "encoder.safetensors", bands, [])
    kernel = load_encoder(exported, [*RGB, "B08"]).conv1.weight
    assert torch.equal(encoder.conv1.weight, kernel[:, [3, 2, 1, 0]])
