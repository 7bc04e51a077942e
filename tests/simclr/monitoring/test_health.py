"""Signs of collapse, and sums over an interval."""

import logging
import math

import pytest
import torch

from simclr.config import EncoderName, ModelConfig
from simclr.monitoring.health import (
    STUCK_STEPS,
    CollapseDetector,
    MetricAccumulator,
    NonFiniteStepCounter,
    StepOutput,
    collapse_in_words,
    effective_ranks,
    flop_per_view,
    spread,
)

CPU = torch.device("cpu")


def numbers(projections: torch.Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in spread(projections).items()}


def test_directions_spread_evenly_are_healthy():
    generator = torch.Generator().manual_seed(0)
    seen = numbers(torch.randn(4096, 128, generator=generator))
    assert seen["deviation"] == pytest.approx(1.0, abs=0.01)
    assert seen["mean_cosine"] == pytest.approx(0.0, abs=1e-3)
    assert seen["alignment"] == pytest.approx(2.0, abs=0.02)
    assert collapse_in_words({"step": 1, **seen}) == ""


def test_equal_projections_are_called_a_collapse():
    seen = numbers(torch.ones(64, 16) + 1e-4 * torch.randn(64, 16))
    assert seen["mean_cosine"] > 0.99
    assert seen["alignment"] < 1e-3
    words = collapse_in_words({"step": 40, **seen})
    assert words.startswith("projections have collapsed at step 40")
    assert "lower optim.learning_rate" in words


def test_a_skipped_step_is_not_called_a_collapse():
    seen = numbers(torch.full((64, 16), math.nan))
    assert collapse_in_words({"step": 40, **seen}) == ""


def test_mean_cosine_is_over_distinct_rows():
    rows = torch.randn(10, 5)
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines = unit @ unit.T
    expected = (cosines.sum() - 10) / 90
    assert numbers(rows)["mean_cosine"] == pytest.approx(float(expected), abs=1e-5)


def outcome(loss: float) -> StepOutput:
    norm = torch.tensor(2 * loss)
    return StepOutput(torch.tensor(loss), norm, (~norm.isfinite()).float(), torch.randn(8, 4))


def test_an_interval_is_the_mean_over_its_steps_and_begins_anew():
    interval = MetricAccumulator(CPU, global_batch_size=4, flop_per_pair=1e12)
    for loss in (1.0, 2.0, 6.0):
        interval.add(outcome(loss))
    record = interval.close(waited_s=0.0)
    assert record["loss"] == 3.0
    assert record["patches_per_s"] > 0
    interval.add(outcome(5.0))
    assert interval.close(0.0)["loss"] == 5.0


def test_an_interval_goes_on_from_saved_sums():
    first = MetricAccumulator(CPU, global_batch_size=4, flop_per_pair=1e12)
    first.add(outcome(1.0))
    second = MetricAccumulator(CPU, global_batch_size=4, flop_per_pair=1e12)
    second.load_state(first.state())
    second.add(outcome(3.0))
    assert second.close(0.0)["loss"] == 2.0


def test_uniformity_is_that_of_its_definition():
    unit = torch.nn.functional.normalize(torch.randn(20, 6), dim=1)
    distances = torch.pdist(unit).square()
    assert numbers(unit)["uniformity"] == pytest.approx(float((-2 * distances).exp().mean().log()))
    many = numbers(torch.randn(4096, 128, generator=torch.Generator().manual_seed(1)))
    assert many["uniformity"] == pytest.approx(-4 + 8 / 128, abs=0.01)


def test_effective_rank_counts_the_directions_that_are_used():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(4000, 16, generator=generator) @ torch.randn(16, 128, generator=generator)
    assert 14 < effective_ranks(low)["rank_me"] <= 16.01
    assert effective_ranks(torch.ones(64, 32))["rank_me"] == pytest.approx(1.0, abs=1e-3)
    full = torch.randn(12800, 128, generator=generator)
    assert effective_ranks(full)["rank_me"] > 127
    offset = effective_ranks(full + 8)
    assert offset["rank_me"] < 100
    assert offset["rank_me_centred"] > 120


def test_effective_rank_equals_the_singular_values_of_unit_rows():
    rows = torch.randn(50, 12, dtype=torch.float64)
    singular = torch.linalg.svdvals(torch.nn.functional.normalize(rows, dim=1))
    share = singular / singular.sum()
    expected = math.exp(-float((share * torch.log(share + 1e-7)).sum()))
    assert effective_ranks(rows)["rank_me"] == pytest.approx(expected, rel=1e-9)


def record(step, loss, deviation=1.0, cosine=0.0):
    place = {"step": step, "loss": loss, "chance_level": 4.0}
    return {**place, "deviation": deviation, "mean_cosine": cosine}


def test_a_loss_stuck_at_chance_is_said_once_and_again_after_a_recovery(caplog):
    alarm = CollapseDetector(warmup_steps=100)
    with caplog.at_level(logging.WARNING):
        for step in range(10, 100 + STUCK_STEPS, 10):
            alarm.watch(record(step, 4.01))
        assert caplog.messages == []
        for step in range(100 + STUCK_STEPS, 400, 10):
            alarm.watch(record(step, 4.01))
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("loss is stuck at 4.000")
        alarm.watch(record(400, 3.5))
        for step in range(410, 420 + STUCK_STEPS, 10):
            alarm.watch(record(step, 3.99))
    assert len(caplog.messages) == 2


def test_a_restart_does_not_make_a_stuck_run_forget(caplog):
    first, second = CollapseDetector(0), CollapseDetector(0)
    first.watch(record(10, 4.0))
    second.load_state(first.state())
    with caplog.at_level(logging.WARNING):
        second.watch(record(10 + STUCK_STEPS, 4.0))
    assert len(caplog.messages) == 1


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run():
    skips = NonFiniteStepCounter(CPU, limit=3)
    for flag in (0.0, 1.0, 1.0, 0.0, 1.0):
        skips.count(torch.tensor(flag))
    skips.end_if_many(5)
    assert (skips.total(), skips.in_a_row()) == (3, 1)
    other = NonFiniteStepCounter(CPU, limit=3)
    other.load_state(skips.state())
    other.count(torch.tensor(1.0))
    other.count(torch.tensor(1.0))
    other.count(torch.tensor(0.0))  # over before anybody looked
    with pytest.raises(ValueError, match="no finite gradient in 3 steps one after another"):
        other.end_if_many(8)


def test_skipped_steps_leave_no_mark_on_the_means():
    interval = MetricAccumulator(CPU, global_batch_size=4, flop_per_pair=1e12)
    for loss in (1.0, math.nan, 3.0):
        interval.add(outcome(loss))
    seen = interval.close(waited_s=0.0)
    assert (seen["loss"], seen["gradient_norm"]) == (2.0, 4.0)
    assert seen["tflop_per_s"] == pytest.approx(seen["patches_per_s"])
    interval.add(outcome(math.nan))
    assert math.isnan(interval.close(0.0)["loss"])


def test_the_arithmetic_of_a_step_is_the_published_one():
    # He et al. 2016 count 3.6e9 multiply-adds for ResNet-34 at 224 px; backward takes twice that,
    # less the first layer's input gradient.
    count = flop_per_view(ModelConfig(encoder=EncoderName.resnet34), 3, 224)
    assert count == pytest.approx(3 * 2 * 3.66e9, rel=0.02)
