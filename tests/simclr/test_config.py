"""Settings are annotated, documented, and checked when they are made."""

import dataclasses
import math
import re
import typing

import pytest

from simclr import config as module
from simclr.augment.parameters import PRESETS
from simclr.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    LossConfig,
    LossName,
    OptimConfig,
    Precision,
    PresetName,
    TrainConfig,
    WorldConfig,
    require_even_share,
)
from simclr.evaluation.config import EvaluateConfig, FinetuneConfig, Protocol
from simclr.export import ExportConfig, ExportFormat

CLASSES = [
    value
    for value in vars(module).values()
    if dataclasses.is_dataclass(value) and isinstance(value, type)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_setting_is_annotated_and_documented(kind):
    names = {field.name for field in dataclasses.fields(kind)}
    # A value without annotation would silently not be a setting.
    public = {name for name in vars(kind) if not name.startswith("_")}
    assert public <= names
    assert names == set(typing.get_type_hints(kind))
    for name in names - {"world", "data", "augment", "model", "loss", "optim", "checkpoint"}:
        assert f"{name}:" in kind.__doc__, f"{kind.__name__}.{name} is not documented"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(bands=["B02", "B99"]), "unknown band 'B99'"),
        (lambda: DataConfig(bands=[]), "data.bands is empty"),
        (lambda: DataConfig(fraction=0), "data.fraction is 0"),
        (lambda: DataConfig(global_batch_size=1), "data.global_batch_size is 1"),
        (lambda: DataConfig(num_threads=0), "data.num_threads is 0"),
        (lambda: DataConfig(num_slots=1), "data.num_slots is 1"),
        (lambda: LossConfig(temperature=0), "loss.temperature is 0"),
        (lambda: LossConfig(temperature=math.inf), "loss.temperature is inf"),
        (lambda: OptimConfig(warmup_epochs=math.inf), "optim.warmup_epochs is inf"),
        (lambda: OptimConfig(learning_rate=math.inf), "optim.learning_rate is inf"),
        (lambda: OptimConfig(weight_decay=math.inf), "optim.weight_decay is inf"),
        (lambda: DataConfig(weights=[math.inf, 1.0]), r"data.weights is \[inf, 1.0\]"),
        (lambda: OptimConfig(learning_rate=-1), "optim.learning_rate is -1"),
        (lambda: OptimConfig(weight_decay=-1), "optim.weight_decay is -1"),
        (lambda: CheckpointConfig(keep=1), "checkpoint.keep is 1"),
        (lambda: CheckpointConfig(every_steps=0), "checkpoint.every_steps is 0"),
        (lambda: WorldConfig(timeout_s=0), "world.timeout_s is 0"),
        (lambda: TrainConfig(epochs=0), "epochs is 0"),
        (lambda: TrainConfig(seed=-1), "seed is -1"),
    ],
)
def test_a_wrong_value_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_choices_are_members_also_from_python():
    assert LossConfig(name="dcl").name is LossName.dcl
    assert AugmentConfig(preset="paper").preset is PresetName.paper
    assert EvaluateConfig(protocols=["knn"]).protocols == [Protocol.knn]
    assert TrainConfig(precision="bfloat16").precision is Precision.bfloat16
    assert ExportConfig(formats=["onnx"]).formats == [ExportFormat.onnx]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig(name="nce"), "loss.name is 'nce'; give one of ntxent, dcl"),
        (lambda: OptimConfig(name="nonsense"), "optim.name is 'nonsense'; give one of adam, adamw"),
        (
            lambda: AugmentConfig(preset="papper"),
            "augment.preset is 'papper'; give one of paper,",
        ),
        (lambda: WorldConfig(device=0), "world.device is 0; give one of auto, cpu, cuda"),
        (lambda: TrainConfig(precision=None), "precision is None; give one of auto, float32"),
        (lambda: EvaluateConfig(protocols=["svm"]), "protocols is 'svm'; give one of knn"),
        (lambda: EvaluateConfig(stages=True, protocols=["finetune_all"]), "stages is true, but"),
        (lambda: FinetuneConfig(precision="auto"), "finetune.precision is auto; give float32"),
        (lambda: TrainConfig(gradient_precision="auto"), "gradient_precision is auto; give"),
        (lambda: ExportConfig(formats=["tflite"]), "formats is 'tflite'; give one of onnx"),
    ],
)
def test_a_choice_that_is_none_of_its_members_is_refused_with_the_list(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_every_preset_has_a_name_among_the_choices():
    assert [*PRESETS, "list", "couplets"] == list(PresetName)


@pytest.mark.parametrize(("batch", "told"), [(100, "use 96 or 104"), (5, "use 8")])
def test_a_batch_that_ranks_cannot_share_is_refused_with_the_nearest(batch, told):
    require_even_share(96, 8)
    with pytest.raises(ValueError, match=rf"global_batch_size is {batch} but 8 ranks .*{told}$"):
        require_even_share(batch, 8)
