"""The batch script that submit writes."""

from __future__ import annotations

import os
import subprocess

from jobs.slurm.submit import SRUN_UNTIL_RANK_0_IS_DONE


def test_the_batch_script_leaves_with_the_code_of_srun_and_without_the_mark(tmp_path):
    srun, mark = tmp_path / "srun", tmp_path / "7.done"
    srun.write_text('#!/bin/sh\ntouch "$SIMCLR_RANK_0_DONE"\necho "$@"\nexit 3\n')
    srun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{SRUN_UNTIL_RANK_0_IS_DONE}\nsrun --wait=300 'a b'"],
        env={
            **os.environ,
            "PATH": path,
            "SIMCLR_RANK_0_DONE": str(mark),
        },
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "--wait=300 a b\n"), done.stderr
    assert not mark.exists()
