"""The README's tour on Slurm, typed as it stands there: one written file, one command."""

from __future__ import annotations

import pytest
from test_pages import block_under, run_block

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

# What a person would correct in the file that the doctor wrote, as an editor of its own.
EDITOR = """#!/bin/sh
exec sed -i -e 's/cpus_per_task: 2/cpus_per_task: 1/' -e 's/memory_gb: [0-9]*/memory_gb: null/' \\
    -e 's/time_min: [0-9]*/time_min: 10/' -e 's/parts: 16/parts: 2/' "$1"
"""


def test_the_tour_on_slurm_ends_with_an_encoder(cluster, tmp_path):
    editor = tmp_path / "editor"
    editor.write_text(EDITOR)
    editor.chmod(0o755)
    environment = {**cluster.environment, "EDITOR": str(editor)}
    done = run_block(block_under("The same on Slurm"), tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    (job,) = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("export")]
    last = job.rstrip(",")
    fields = cluster.wait_for(last, "COMPLETED", "CANCELLED", "FAILED", timeout_s=300)
    assert fields["JobState"] == "COMPLETED"
    assert (tmp_path / "encoders" / "tour" / "encoder.safetensors").exists()
