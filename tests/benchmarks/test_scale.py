"""The tables of the scale plan are those that the command makes of the measured constants."""

from __future__ import annotations

import pytest
from plan import Inputs, plan_of
from scale import PAGE, SIZES, filled


@pytest.mark.slow
def test_the_page_holds_what_the_command_makes():
    page = PAGE.read_text()
    assert filled(page, Inputs()) == page, "constants or recipes changed: benchmarks/scale.py"
    assert filled(page, Inputs(pairs_per_s=2000)) != page


def test_one_gpu_sends_nothing_and_a_step_takes_its_arithmetic():
    plan = plan_of(1, SIZES[1], Inputs(pairs_per_s=512))
    assert plan.gradient_bytes == plan.gathered_bytes == plan.network_s == 0
    assert plan.step_s == plan.pairs / 512
