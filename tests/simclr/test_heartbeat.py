"""A heartbeat says who was where and when, and is never half-written."""

import json
import time

from ranks import CPU

from simclr.distributed import distributed_context
from simclr.trainer import beat


def test_a_heartbeat_names_rank_step_and_time(tmp_path):
    with distributed_context(CPU) as context:
        for step in (3, 4):
            beat(tmp_path, context, step)
    files = list((tmp_path / "heartbeats").iterdir())
    assert [path.name for path in files] == ["rank-0000.json"]
    record = json.loads(files[0].read_text())
    assert (record["rank"], record["step"]) == (0, 4)
    assert abs(record["time"] - time.time()) < 60
