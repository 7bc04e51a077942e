"""What a pretraining would miss hours later is refused before it is submitted."""

from __future__ import annotations

import pytest
from make_data import packed_arrays

from jobs.commands.pretrain import Pretrain
from jobs.config import ClusterConfig
from simclr.config import AugmentConfig, ModelConfig, MonitorConfig, TrainConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(packed_arrays(tmp_path_factory.mktemp("packed") / "shards", 4))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": ModelConfig(weights="nope.pth")}, "model.weights is nope.pth, which does not"),
        ({"monitor": MonitorConfig(shards="nowhere", task="t")}, "nowhere holds no manifest.json"),
        ({"shards": ["nowhere"]}, "nowhere holds no manifest.json"),
    ],
)
def test_a_missing_file_is_refused_at_submission(shards, tmp_path, settings, told):
    plain = {"run_dir": str(tmp_path / "run"), "shards": [shards], **settings}
    command = Pretrain(TrainConfig(**plain))
    with pytest.raises(ValueError, match=told):
        command.validate(ClusterConfig())
    command.validate(ClusterConfig(after="12"))  # a job before it may make the file


def test_an_unknown_operation_is_refused_at_submission(shards, tmp_path):
    views = AugmentConfig(strengths={"crop": 0.3})
    command = Pretrain(TrainConfig(run_dir=str(tmp_path / "run"), shards=[shards], augment=views))
    with pytest.raises(ValueError, match=r"augment\.strengths has 'crop'; valid names: blur, "):
        command.validate(ClusterConfig())
