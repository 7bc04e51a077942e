"""Settings written down: the same when read back, compared by what decides the weights."""

import pytest

from simclr.checkpoint.manifest import config_hash, differing_settings
from simclr.config import (
    CheckpointConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    Stem,
    TrainConfig,
    WorldConfig,
    from_plain,
    to_plain,
)


def test_plain_settings_come_back_as_they_were():
    config = TrainConfig(shards=["a b"], model=ModelConfig(stem=Stem.small), seed=2**62)
    plain = to_plain(config)
    assert plain["model"]["stem"] == "small"
    assert from_plain(TrainConfig, plain) == config
    with pytest.raises(ValueError, match="unknown settings of TrainConfig: colour"):
        from_plain(TrainConfig, {"colour": 1})


def test_the_hash_follows_what_decides_the_weights_and_nothing_else():
    base = config_hash(TrainConfig())
    free = TrainConfig(
        run_dir="elsewhere", log_every_steps=1, data=DataConfig(num_threads=9),
        checkpoint=CheckpointConfig(every_steps=7), world=WorldConfig(timeout_s=9), max_steps=9,
    )  # fmt: skip
    assert config_hash(free) == base
    assert config_hash(TrainConfig(loss=LossConfig(temperature=0.2))) != base
    assert config_hash(TrainConfig(data=DataConfig(global_batch_size=64))) != base


def test_differences_are_told_by_key():
    old, new = to_plain(TrainConfig()), to_plain(TrainConfig(loss=LossConfig(temperature=0.2)))
    assert differing_settings(old, new) == ["loss.temperature: 0.1, now 0.2"]
