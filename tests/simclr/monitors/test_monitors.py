"""Signs of collapse, and sums over an interval."""

import pytest
import torch

from simclr.monitors.alarm import collapse_in_words
from simclr.monitors.collapse import spread
from simclr.monitors.interval import Interval
from simclr.step import Outcome

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


def test_mean_cosine_is_over_distinct_rows():
    rows = torch.randn(10, 5)
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines = unit @ unit.T
    expected = (cosines.sum() - 10) / 90
    assert numbers(rows)["mean_cosine"] == pytest.approx(float(expected), abs=1e-5)


def outcome(loss: float) -> Outcome:
    norm = torch.tensor(2 * loss)
    return Outcome(torch.tensor(loss), norm, (~norm.isfinite()).float(), torch.randn(8, 4))


def test_an_interval_is_the_mean_over_its_steps_and_begins_anew():
    interval = Interval(CPU, global_batch_size=4, flop_per_pair=1e12)
    for loss in (1.0, 2.0, 6.0):
        interval.add(outcome(loss))
    record = interval.close(waited_s=0.0)
    assert record["loss"] == 3.0
    assert record["patches_per_s"] > 0
    interval.add(outcome(5.0))
    assert interval.close(0.0)["loss"] == 5.0


def test_an_interval_goes_on_from_saved_sums():
    first = Interval(CPU, global_batch_size=4, flop_per_pair=1e12)
    first.add(outcome(1.0))
    second = Interval(CPU, global_batch_size=4, flop_per_pair=1e12)
    second.load_state(first.state())
    second.add(outcome(3.0))
    assert second.close(0.0)["loss"] == 2.0
