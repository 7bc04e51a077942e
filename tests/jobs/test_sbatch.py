"""The plain batch scripts pass on what their shell has set up, and bear what conda does there."""

import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parents[2].glob("jobs/sbatch/*.sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_environment_is_activated_and_reaches_the_ranks(path, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\necho "$ACTIVATED" "$@"\n')
    srun.chmod(0o755)
    # as conda's scripts do, which read what is not set
    head, line, rest = path.read_text().partition("pipefail")
    comment, _, body = rest.partition("\n")
    script = f'{head}{line}{comment}\nexport ACTIVATED="yes$CONDA_BACKUP_CXX"\n{body}'
    ended = subprocess.run(
        ["bash", "-c", script, "script", "run=r"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_EXPORT_ENV": "NONE"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("yes ")
    assert " --export=ALL " in ended.stdout
    assert ended.stdout.endswith(f"simclr-{path.stem} run=r cluster=here\n")
    assert [file.name for file in tmp_path.iterdir()] == ["srun"]
