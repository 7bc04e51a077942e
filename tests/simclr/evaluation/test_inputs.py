"""Labelled shards of every odd kind: the command answers, or refuses in a line with the cure."""

from __future__ import annotations

import shutil
import sys
from collections import Counter

import numpy as np
import pytest

from jobs.commands import evaluate as verb
from preprocess.shards.format import GroupLayout, LabelSet, Patch, ShardLayout
from preprocess.shards.manifest import ShardOrigin, build_manifest
from preprocess.shards.writer import write_shard
from simclr.evaluation.report import read_report

pytestmark = pytest.mark.slow

BANDS = ("B02", "B03", "B04", "B08")
CLASSES = ("field", "forest", "town")
LAYOUT = ShardLayout(
    (GroupLayout("b10", BANDS, 12, 10.0),),
    (LabelSet("covers", "single", CLASSES), LabelSet("cover", "single", CLASSES[:2])),
)


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """Return a copy of the trained run, to be written into."""
    folder = tmp_path_factory.mktemp("inputs") / "run"
    shutil.copytree(trained_run.folder, folder)
    return folder


@pytest.fixture
def command(run, tmp_path, monkeypatch, capsys):
    """Return a function that scores patches given as (class, split[, id]); code, stdout, stderr."""
    shutil.rmtree(run / "evaluation", ignore_errors=True)

    def score(*patches, **settings):
        shards = pack(tmp_path / "shards", patches)
        options = {"task": "covers", "seeds": "[0,1]", "bootstrap": 100, **settings}
        words = [f"run={run}", f"shards={shards}"]
        words += [f"{name}={value}" for name, value in options.items()]
        monkeypatch.setattr(sys, "argv", ["simclr-evaluate", *words])
        with pytest.raises(SystemExit) as ended:
            verb.main()
        return ended.value.code, *capsys.readouterr()

    return score


@pytest.fixture
def refusal(command):
    """Return a function that scores patches and returns the one line that refuses them."""

    def refused(*patches, **settings):
        code, out, log = command(*patches, **settings)
        [line] = [each for each in log.splitlines(keepends=True) if " INFO " not in each]
        assert (code, out) == (2, ""), log
        return line.removeprefix("simclr-evaluate: ")

    return refused


def pack(folder, patches):
    """Pack patches (class or None, split, id) whose brightness tells the class."""
    random = np.random.default_rng(0)
    drafts = [
        Patch(
            id=name[0] if name else f"P-{number:04d}",
            pixels={"b10": random.integers(100, 900, (4, 12, 12)).astype(np.uint16)},
            labels={one.name: (label,) for one in LAYOUT.label_sets if label in one.classes},
            split=split,
        )
        for number, (label, split, *name) in enumerate(patches)
    ]
    for draft, (label, *_) in zip(drafts, patches, strict=True):
        draft.pixels["b10"] += np.uint16(1000 * (CLASSES.index(label) if label else 3))
    origin = ShardOrigin("odd", simulated=True)
    entry = write_shard(folder / "shard-00000.h5", LAYOUT, drafts, len(drafts), origin)
    build_manifest(folder, origin, LAYOUT, [entry]).write(folder)
    return folder


def dealt(label, train, validation, test):
    """Return patches of a class, so many in each split."""
    counts = Counter(train=train, validation=validation, test=test)
    return [(label, split) for split in counts.elements()]


def test_unlabelled_shards_are_refused(refusal):
    line = refusal(*[(None, "train")] * 4)
    assert line.startswith("none of the 4 patches has a label in label set 'covers'; ")


def test_partly_labelled_shards_are_scored_by_what_is_labelled(command, run):
    patches = [*dealt("field", 6, 3, 3), *dealt("forest", 6, 3, 3), *dealt(None, 5, 2, 2)]
    code, out, err = command(*patches)
    assert code == 0, err
    assert "24 labelled patches: 12 train, 6 validation, 6 test" in out
    assert "9 patches without a label were left out" in out


def test_two_ranks_of_this_machine_find_the_same(command, run):
    patches = [*dealt("field", 6, 3, 3), *dealt("forest", 7, 3, 3), *dealt("town", 5, 2, 2)]
    command(*patches)
    alone = scored(run)
    code, out, err = command(*patches, cluster="laptop")
    assert code == 0, err
    assert out.count("SIMULATED PATCHES") == 1
    assert_alike(scored(run), alone)


# Two ranks take other batches, with other numbers of threads, than one rank does: the libraries of
# a CPU may choose other kernels for them and add in another order. Features are float32 sums of up
# to some thousand products and agree to about 1e-6 of their size; the probe ends at a gradient of
# 1e-5, so that probabilities, and all that is continuous in them, agree to about 1e-4: 1.4e-4 was
# the most between AVX-512 and SSE4.1. Decisions and ranks are the same. A p-value counts resamples
# on either side of zero, where a difference of nearly nothing may change sides; points of the map
# are 20 wide, and their axes turn where two variances are nearly equal.
TOLERANCES = {"p_value": 0.05, "p_holm": 0.1, "points": 0.2}


def assert_alike(found, expected, name="evaluation", tolerance=1e-3):
    """Compare two reports of one evaluation whose sums were taken in another order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value, f"{name}.{key}", TOLERANCES.get(key, tolerance))
    elif isinstance(expected, list):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_alike(*pair, f"{name}[{number}]", tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=0, abs=tolerance), name
    else:
        assert found == expected, name


def test_a_single_class_is_refused_by_name(refusal):
    line = refusal(*dealt("forest", 4, 2, 2))
    assert line.startswith("all 8 labelled patches are forest; ")
    assert "needs two different answers" in line


def test_five_patches_are_scored_and_the_table_says_how_few_they_are(command):
    code, out, err = command(*[("field", ""), ("forest", "")] * 2, ("field", ""))
    assert code == 0, err
    assert "5 labelled patches: 2 train, 1 validation, 2 test" in out


def test_one_patch_a_class_is_too_few(refusal):
    line = refusal(*[(name, "") for name in CLASSES])
    assert line.startswith("3 labelled patches give 3 train, 0 validation, 0 test; each part needs")


def test_blocks_of_ground_need_places(refusal):
    line = refusal(*[("field", "train"), ("forest", "validation")] * 3, split="drawn")
    assert "it is not known where all patches lie; use split=given" in line


def test_a_class_absent_from_the_test_has_no_score_and_is_left_out_of_means(command, run):
    patches = [*dealt("field", 6, 3, 4), *dealt("forest", 6, 3, 4), *dealt("town", 3, 2, 0)]
    code, out, err = command(*patches)
    assert code == 0, err
    assert "classes without a test patch: town; they have no score" in out
    row = scored(run)["results"][0]
    assert row["classes"]["average_precision"][2]["value"] is None


def test_a_class_absent_from_training_is_told_and_never_answered_by_the_probe(command, run):
    patches = [*dealt("field", 6, 3, 4), *dealt("forest", 6, 3, 4), *dealt("town", 0, 2, 4)]
    code, out, err = command(*patches)
    assert code == 0, err
    assert "classes without a training patch: town; no classifier can know them" in out
    confusion = np.array(scored(run)["results"][0]["confusion"])
    assert confusion[:, 2].sum() == 0
    assert confusion[2].sum() == 4


def test_training_patches_of_one_class_are_refused(refusal):
    line = refusal(*dealt("field", 6, 0, 0), *dealt("forest", 0, 3, 3))
    assert line.startswith("all 6 training patches have the same labels")


def test_a_test_split_without_the_positive_class_is_refused_before_anything_is_fitted(refusal):
    line = refusal(*dealt("field", 6, 3, 4), *dealt("forest", 6, 3, 0), task="cover")
    assert line.startswith("none of the 4 test patches is forest; without one there is no average_")


def test_three_patches_are_scored_and_drawn(command, run):
    code, _, err = command(("field", "train"), ("forest", "train"), *dealt("field", 0, 1, 1))
    assert code == 0, err
    assert scored(run)["map"] is None
    assert "Classes and probabilities" in (run / "evaluation.html").read_text()


def test_an_id_in_two_splits_is_refused(refusal):
    patches = [*dealt("field", 4, 2, 2), *dealt("forest", 4, 2, 2)]
    line = refusal(*patches, ("field", "train", "twin"), ("field", "test", "twin"))
    assert line.startswith("patch odd/twin is in the splits test, train; ")


def scored(run):
    """Return the evaluation that was written."""
    [evaluation] = read_report(run / "evaluation.json")
    return evaluation
