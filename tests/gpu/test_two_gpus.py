"""What only two GPUs can show: statistics over ranks, and gradients that travel beside backward."""

from __future__ import annotations

import pytest
import torch
from make_data import packed_arrays
from rank_jobs import hidden_reductions, small_run, world_batchnorm
from ranks import run_ranks

from simclr.config import AugmentConfig, DataConfig, Device, EncoderName, ModelConfig, WorldConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here"),
]


def test_batchnorm_over_gpus_equals_that_over_processes(tmp_path):
    values = torch.randn(32, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    on_cpu = run_ranks(world_batchnorm, 2, tmp_path, values)
    on_gpu = run_ranks(world_batchnorm, 2, tmp_path, values, Device.cuda)
    for ours, expected in zip(on_gpu, on_cpu, strict=True):
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_travel_while_backward_goes_on(tmp_path):
    config = small_run(
        packed_arrays(tmp_path / "shards", 256),
        tmp_path / "run",
        world=WorldConfig(device=Device.cuda),
        data=DataConfig(global_batch_size=64, splits=["train"]),
        augment=AugmentConfig(view_size_px=96),
        model=ModelConfig(encoder=EncoderName.resnet50),
        epochs=20,
    )
    for num, hidden in run_ranks(hidden_reductions, 2, tmp_path, config):
        assert num >= 3  # buckets of 25 MiB, and ResNet-50 has 90
        assert hidden >= num - 1  # the last one has nothing beside it
