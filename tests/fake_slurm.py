"""Commands of Slurm on PATH that number the jobs they take, for tests of what is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

_COMMANDS = {
    # takes as many jobs as the file ``accepts`` says
    "sbatch": """n=$(($(cat taken) + 1))
[ $n -le $(cat accepts) ] || { echo "sbatch: error: too many jobs" >&2; exit 1; }
echo $n > taken; echo Submitted batch job $n""",
    "squeue": "cat queue",
    "srun": "true",
    **dict.fromkeys(("sinfo", "sacct", "scontrol"), "exit 1"),
}


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the commands into a folder and on PATH; return the file with the answer of squeue."""
    folder.mkdir()
    for name, text in {"taken": "0", "accepts": "1000", "queue": ""}.items():
        (folder / name).write_text(text)
    for name, body in _COMMANDS.items():
        (folder / name).write_text(f"#!/bin/sh\ncd '{folder}'\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "queue"
