"""The benchmark on real images pretrains on no cell that it tests."""

from __future__ import annotations

import csv

import numpy as np
import real


def test_a_cell_is_pretrained_on_or_tested_and_every_image_has_its_use(tmp_path):
    cells = np.random.default_rng(0).integers(0, 40, 300)
    with (tmp_path / "index.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "label", "cell"])
        table.writerows([f"image_{n}", "Forest", f"{cell}_7"] for n, cell in enumerate(cells))
    left_out_of_pool, pool = real._ids_by_kind(tmp_path / "index.csv")
    tested, trained = ({name.split("/")[0] for name in ids} for ids in (left_out_of_pool, pool))
    assert not tested & trained
    assert len({*left_out_of_pool, *pool}) == 300
    assert 0.6 * 300 < len(pool) <= real.POOL_SHARE * 300
    assert pool[0].split("/")[1:] == ["Forest", "image_" + pool[0].rpartition("_")[2]]
