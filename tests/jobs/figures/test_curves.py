"""Curves are drawn from whatever records a run has left."""

import json

import matplotlib.image
import numpy as np
import pytest

from jobs.figures.run_report import _running_mean, draw_curves

RECORD = {
    "learning_rate": 1e-3,
    "loss": 3.0,
    "chance_level": 4.0,
    "gradient_norm": 2.0,
    "patches_per_s": 100.0,
    "deviation": 0.9,
    "mean_cosine": 0.1,
    "skipped_steps": 0,
}
PROBED = {"probe/accuracy": 0.6, "knn/accuracy": 0.5, "controls/random_encoder": 0.3}


def write(run_dir, records):
    lines = (json.dumps({"step": step, **RECORD, **extra}) for step, extra in enumerate(records))
    (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    "records",
    [[{}], [{}, {"loss": None, "gradient_norm": None}, {}], [PROBED, {}, PROBED]],
    ids=["one", "gap", "probed"],
)
def test_records_become_a_picture_with_ink(tmp_path, records):
    write(tmp_path, records)
    picture = matplotlib.image.imread(draw_curves(tmp_path))
    assert picture.shape[0] > 600
    assert picture[..., :3].std() > 0.05


def test_a_panel_without_numbers_is_left_out(tmp_path):
    write(tmp_path, [PROBED] * 3)
    with_probe = matplotlib.image.imread(draw_curves(tmp_path)).shape[0]
    write(tmp_path, [{"deviation": None, "patches_per_s": None}] * 3)
    assert matplotlib.image.imread(draw_curves(tmp_path)).shape[0] < with_probe


def test_the_running_mean_follows_a_line_and_leaves_gaps_out():
    values = np.arange(20.0)
    values[7] = np.nan
    mean = _running_mean(values, 5)
    assert np.isnan(mean[7])
    known = np.flatnonzero(np.isfinite(mean))
    assert np.allclose(mean[known[2:-2]], values[known[2:-2]], atol=0.6)
    assert np.allclose(mean[12:18], values[12:18])


def test_a_run_without_records_has_no_curves(tmp_path):
    assert draw_curves(tmp_path) is None
    assert not list(tmp_path.iterdir())
