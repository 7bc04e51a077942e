"""Simulated patches: deterministic, plausible, told apart everywhere, split by ground."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from preprocess.bands import L2A_BANDS
from preprocess.sources import open_source
from preprocess.sources.labels import CLASSES_43, TO_19
from preprocess.sources.simulated import (
    CLASSES,
    COVERS,
    ENDMEMBERS,
    MARKER,
    MAX_PATCHES,
    NUM_REGIONS,
    SHARES,
    SPLITS,
    SimulatedConfig,
    acquisition_of,
    make_land,
    observe,
    write_tree,
)


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def patches_of(root, num_patches, seed=0):
    source = open_source(SimulatedConfig(root=str(root), num_patches=num_patches, seed=seed))
    layout = source.layout()
    return [source.read(ref, layout) for ref in source.discover()]


def test_equal_seeds_give_equal_trees_and_other_seeds_others(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_tree(tmp_path / name, 6, seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    tifs = [name for name in a if name.endswith(".tif")]
    assert len(tifs) == 72
    assert not any(a[name] == c[name] for name in tifs)


def test_a_patch_does_not_depend_on_the_number_of_patches(tmp_path):
    write_tree(tmp_path / "few", 3, seed=1)
    write_tree(tmp_path / "many", 9, seed=1)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    few = {name: digest for name, digest in few.items() if name.startswith("BigEarthNet")}
    assert len(few) == 3 * 13
    assert few.items() <= many.items()


def test_an_interrupted_tree_is_completed_to_the_same_bytes(tmp_path):
    write_tree(tmp_path / "whole", 6, seed=0)
    root = tmp_path / "broken"
    write_tree(root, 6, seed=0)
    marker = json.loads((root / MARKER).read_text())
    (root / MARKER).write_text(json.dumps({**marker, "complete": False}))
    for path in sorted((root / "BigEarthNet-v1.0").iterdir())[3:]:
        shutil.rmtree(path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (path.parent / f".{path.name}.{os.uname().nodename}-{dead.pid}.tmp").mkdir()
    write_tree(root, 6, seed=0)
    assert digests(root) == digests(tmp_path / "whole")


def test_a_finished_tree_is_used_again_untouched(tmp_path):
    write_tree(tmp_path, 2, seed=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_tree(tmp_path, 2, seed=0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_tree_of_other_settings_is_refused(tmp_path):
    write_tree(tmp_path, 2, seed=0)
    with pytest.raises(ValueError, match=r"another simulation.*seed 0"):
        write_tree(tmp_path, 2, seed=1)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.doc"):
        write_tree(tmp_path, 2, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_more_patches_than_ground_are_refused(tmp_path):
    with pytest.raises(ValueError, match=str(MAX_PATCHES)):
        write_tree(tmp_path / "new", MAX_PATCHES + 1, seed=0)
    assert not (tmp_path / "new").exists()


def test_every_surface_says_that_it_is_simulated(tmp_path):
    patches = patches_of(tmp_path, 2)
    assert "synthesised" in json.loads((tmp_path / MARKER).read_text())["notice"]
    assert all(patch.id.startswith("SIM_") for patch in patches)
    assert all(patch.product.startswith("SIM_") for patch in patches)
    for path in tmp_path.rglob("*.tif"):
        with rasterio.open(path) as dataset:
            assert "simulated" in dataset.tags()["TIFFTAG_IMAGEDESCRIPTION"]
    assert open_source(SimulatedConfig(root=str(tmp_path), num_patches=2)).simulated


def test_the_tree_has_the_form_of_the_real_archive(tmp_path, real_data):
    write_tree(tmp_path, 1, seed=0)
    (ours,) = (tmp_path / "BigEarthNet-v1.0").iterdir()
    real = sorted((real_data / "bigearthnet_v1" / "BigEarthNet-v1.0").iterdir())[0]

    def suffixes(folder):
        return {path.name.removeprefix(folder.name) for path in folder.iterdir()}

    assert suffixes(ours) == suffixes(real)
    for suffix in suffixes(real) - {"_labels_metadata.json"}:
        with (
            rasterio.open(ours / (ours.name + suffix)) as a,
            rasterio.open(real / (real.name + suffix)) as b,
        ):
            keys = ("driver", "dtype", "nodata", "width", "height", "count")
            assert {key: a.profile[key] for key in keys} == {key: b.profile[key] for key in keys}
            assert a.res == b.res
            assert a.crs.to_wkt()[:20] == b.crs.to_wkt()[:20]
    a, b = (json.loads((f / f"{f.name}_labels_metadata.json").read_text()) for f in (ours, real))
    assert a.keys() == b.keys()
    assert a["coordinates"].keys() == b["coordinates"].keys()


def test_coordinates_follow_from_tile_column_and_row(tmp_path):
    for patch in patches_of(tmp_path, 40):
        column, row = (int(part) for part in patch.id.rsplit("_", 2)[1:])
        assert (
            patch.transform[2] % 1200
            == (column * 1200 + {"29SND": 499980}.get(patch.tile, 0)) % 1200
        )
        assert patch.place == f"{patch.tile}_{column:02d}_{row:02d}"
        assert 0 <= column <= 90
        assert 0 <= row <= 90


def test_ground_keeps_its_split_on_all_dates_and_splits_never_touch():
    scenes = [acquisition_of(number) for number in range(2 * NUM_REGIONS + 400)]
    split_of = {}
    for scene in scenes:
        region = (scene.tile.name, *scene.corner)
        assert split_of.setdefault(region, scene.split) == scene.split
    assert len(split_of) == NUM_REGIONS
    for _, column, row in split_of:
        # a region is two patches wide; the next one begins after a gap of one patch
        assert column % 3 == row % 3 == 0
        assert column + 1 <= 90
        assert row + 1 <= 90
    assert len({(scene.tile.name, scene.split) for scene in scenes[:40]}) == 12


def test_every_split_has_every_class(tmp_path):
    found = {}
    for patch in patches_of(tmp_path, 80):
        found.setdefault(patch.split, set()).update(patch.labels["bigearthnet43"])
    assert found == {split: set(CLASSES) for split in SPLITS}


def test_two_dates_of_a_place_share_their_labels_but_not_their_pixels(tmp_path):
    patches = patches_of(tmp_path, 8)
    by_place = {}
    for patch in patches:
        by_place.setdefault(patch.place, []).append(patch)
    for first, second in by_place.values():
        assert first.labels == second.labels
        assert first.acquired != second.acquired
        assert not np.array_equal(first.pixels["b10"], second.pixels["b10"])


def test_short_times_of_the_real_archive_occur(tmp_path):
    times = {re.search(r"T(\d+)_", patch.id)[1] for patch in patches_of(tmp_path, 32)}
    assert {len(time) for time in times} == {5, 6}


def test_pixels_are_neither_nodata_nor_saturated():
    for number in range(0, 16, 2):
        scene = acquisition_of(number)
        pixels = observe(3, scene, make_land(3, scene.region))
        assert all(values.min() >= 1 and values.max() < 20_000 for values in pixels.values())


def test_coarse_bands_are_the_mean_of_the_ground_they_cover():
    # B8A at 20 m sees nearly what B08 sees at 10 m
    scene = acquisition_of(0)
    pixels = observe(0, scene, make_land(0, 0))
    fine = pixels["b10"][3].reshape(120, 2, 120, 2).mean((1, 3)).ravel()
    coarse = pixels["b20"][3].ravel()
    assert np.corrcoef(fine, coarse)[0, 1] > 0.99


def test_classes_cannot_be_told_by_their_spectra_but_by_their_arrangement():
    """Ridge regression on band means and deviations guesses; on the spectrum of B08 it does not."""
    statistics, arrangement, targets = [], [], []
    for number in range(160):
        scene = acquisition_of(number)
        land = make_land(0, scene.region)
        pixels = observe(0, scene, land)
        for (column, row), name in land.class_of.items():
            windows = {
                group: values[:, row * n : (row + 1) * n, column * n : (column + 1) * n]
                for group, values in pixels.items()
                for n in [values.shape[1] // 2]
            }
            statistics.append(
                np.concatenate(
                    [
                        part
                        for values in windows.values()
                        for part in (values.mean((1, 2)), values.std((1, 2)))
                    ]
                )
            )
            arrangement.append(_lines(windows["b10"][3].astype(float)))
            targets.append(CLASSES.index(name))
    chance = 1 / len(CLASSES)
    assert _held_out_accuracy(np.array(statistics), np.array(targets)) < chance + 0.15
    assert _held_out_accuracy(np.array(arrangement), np.array(targets)) > chance + 0.3


def _lines(band):
    """Return how the power of a band is shared out: strongest first, whatever its direction."""
    power = np.abs(np.fft.rfft2(band - band.mean())) ** 2
    return np.sqrt(np.sort(power.ravel())[::-1][:40] / power.sum())


def _held_out_accuracy(x, targets):
    x = (x - x.mean(0)) / x.std(0)
    x = np.hstack([x, np.ones((len(x), 1))])
    half = len(x) // 2
    wanted = np.eye(len(CLASSES))[targets]
    weights = np.linalg.solve(
        x[:half].T @ x[:half] + 10 * np.eye(x.shape[1]), x[:half].T @ wanted[:half]
    )
    return ((x[half:] @ weights).argmax(1) == targets[half:]).mean()


def test_a_place_turns_green_in_an_order_that_every_share_cuts_exactly():
    land = make_land(0, 0)
    for column, row in land.class_of:
        order = land.order[row * 120 : row * 120 + 120, column * 120 : column * 120 + 120]
        for share in SHARES:
            assert (order < share).mean() == pytest.approx(share, abs=1e-3)


def test_every_class_is_one_of_the_43_and_another_one_of_the_19():
    assert set(CLASSES) <= set(CLASSES_43)
    assert len({TO_19[name] for name in CLASSES} - {""}) == len(CLASSES)
    assert {len(spectrum) for spectrum in ENDMEMBERS.values()} == {len(L2A_BANDS)}
    assert {name for pair in COVERS for name in pair} == set(ENDMEMBERS)
