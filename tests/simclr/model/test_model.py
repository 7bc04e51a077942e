"""Encoder, heads and BatchNorm over ranks."""

import pytest
import torch
from rank_jobs import (
    averaged_gradient,
    gradients_with_world_statistics,
    native_batchnorm,
    node_batchnorm,
    world_batchnorm,
)
from ranks import run_ranks
from torch import nn
from torchvision.models import resnet18

from simclr.config import EncoderName, HeadName, ModelConfig, Stem
from simclr.model.batchnorm import GroupBatchNorm, join_statistics
from simclr.model.simclr import WIDTHS, SimCLR, build_encoder


@pytest.mark.parametrize("name", list(EncoderName))
def test_every_resnet_takes_any_number_of_bands(name):
    encoder = build_encoder(ModelConfig(encoder=name), num_bands=5).eval()
    with torch.no_grad():
        h = encoder(torch.randn(2, 5, 32, 32))
    assert h.shape == (2, WIDTHS[name.value])


def test_weights_load_into_a_plain_torchvision_resnet():
    ours = build_encoder(ModelConfig(encoder=EncoderName.resnet18), num_bands=12).eval()
    plain = resnet18()
    plain.conv1 = nn.Conv2d(12, 64, 7, 2, 3, bias=False)
    plain.fc = nn.Identity()
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(2, 12, 64, 64)
    torch.testing.assert_close(plain.eval()(images), ours(images))


def test_the_small_stem_keeps_the_resolution():
    encoder = build_encoder(ModelConfig(encoder=EncoderName.resnet18, stem=Stem.small), 3)
    assert encoder.conv1(torch.zeros(1, 3, 16, 16)).shape[-1] == 16
    assert isinstance(encoder.maxpool, nn.Identity)


@pytest.mark.parametrize(
    ("head", "linear"), [(HeadName.post, 3), (HeadName.simclr2, 2), (HeadName.simclr3, 3)]
)
def test_heads_project_to_the_width_asked_for(head, linear):
    config = ModelConfig(encoder=EncoderName.resnet18, head=head, projection_size=64)
    model = SimCLR(config, num_bands=4)
    h, z = model(torch.randn(4, 4, 32, 32))
    assert (h.shape, z.shape) == ((4, 512), (4, 64))
    assert sum(isinstance(layer, nn.Linear) for layer in model.head) == linear


def test_batchnorm_over_ranks_equals_one_process_on_the_joined_batch(tmp_path):
    values = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    layer = nn.BatchNorm2d(3)
    whole = values.clone().requires_grad_()
    output = layer(whole)
    (output**3).mean().backward()
    results = run_ranks(world_batchnorm, 2, tmp_path, values)
    torch.testing.assert_close(torch.cat([r["output"] for r in results]), output.detach())
    # Each rank's loss is the mean over its own half, so gradients are twice those of the whole.
    gradients = torch.cat([r["input_gradient"] for r in results]) / 2
    torch.testing.assert_close(gradients, whole.grad, rtol=1e-4, atol=1e-6)
    for result in results:
        torch.testing.assert_close(result["running_mean"], layer.running_mean)
        torch.testing.assert_close(result["running_var"], layer.running_var)


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (8, 3)])
def test_the_kernels_of_cuda_are_combined_to_the_same_values(tmp_path, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 1
    for native, written_out in run_ranks(native_batchnorm, 2, tmp_path, values):
        for name, value in written_out.items():
            torch.testing.assert_close(native[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_of_the_whole_network_on_ranks_equal_one_process(tmp_path):
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 8, 3, 32, 32, generator=generator, dtype=torch.float64)
    alone = run_ranks(gradients_with_world_statistics, 1, tmp_path, views)[0]
    for gradients in run_ranks(gradients_with_world_statistics, 2, tmp_path, views):
        error = torch.cat([(a - b).flatten() for a, b in zip(gradients, alone, strict=True)])
        assert error.norm() / torch.cat([g.flatten() for g in alone]).norm() < 1e-10


def test_world_statistics_keep_names_and_values():
    model = SimCLR(ModelConfig(encoder=EncoderName.resnet18), num_bands=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = join_statistics(model).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, GroupBatchNorm) for norm in norms)


@pytest.mark.slow
def test_batchnorm_of_a_node_joins_the_ranks_of_that_node_only(tmp_path):
    values = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    first, second, third, fourth = values.chunk(4)
    results = run_ranks(node_batchnorm, 4, tmp_path, values)
    for pair, ranks in (((first, third), (0, 2)), ((second, fourth), (1, 3))):
        expected = nn.BatchNorm2d(3)(torch.cat(pair))
        torch.testing.assert_close(torch.cat([results[rank] for rank in ranks]), expected)


def test_gradients_travel_in_half_the_bytes_if_asked(tmp_path):
    exact = run_ranks(averaged_gradient, 2, tmp_path, False)[0].item()
    half = run_ranks(averaged_gradient, 2, tmp_path, True)[0].item()
    assert exact == pytest.approx(5 / 6, rel=1e-6)
    assert half != pytest.approx(5 / 6, rel=1e-6)
    assert half == pytest.approx(5 / 6, rel=2**-7)
