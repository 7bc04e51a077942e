"""Packing: the same bytes whatever happens on the way, and one clear line when it cannot go on."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from make_data import bigearthnet_v1, write_geotiff

from preprocess.config import OnError, PackConfig
from preprocess.pack import PackError, finish, pack, remove_leftovers
from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import PatchError
from preprocess.sources.bigearthnet import BigEarthNetV1Config, BigEarthNetV2Config
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.sources.simulated import SimulatedConfig
from preprocess.verify import VerifyConfig, verify

REPOSITORY = Path(__file__).resolve().parents[2]
EUROSAT = [
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A",
]  # fmt: skip


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def config_of(root, output, **settings):
    source = BigEarthNetV1Config(root=str(root))
    # 0.35 MiB hold two patches
    return PackConfig(source=source, output=str(output), **{"shard_size_mib": 0.35, **settings})


def samples_of(folder):
    manifest = read_manifest(folder)
    return {
        sample: reader.read(row)
        for reader in open_readers(folder, manifest)
        for row, sample in enumerate(reader.index("id").tolist())
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("v1")
    bigearthnet_v1(root, 7)
    return root


@pytest.fixture
def spoilt(tmp_path):
    """Return a tree of six patches of which the fourth has a truncated band."""
    folders = bigearthnet_v1(tmp_path / "spoilt", 6)
    path = folders[3] / f"{folders[3].name}_B03.tif"
    content = path.read_bytes()
    path.write_bytes(content[:900])
    return tmp_path / "spoilt", path, content


def real_sources(real_data):
    v1, v2 = real_data / "bigearthnet_v1", real_data / "bigearthnet_v2"
    eurosat = GeotiffConfig(
        root=str(real_data / "eurosat_ms"), name="eurosat", file_bands=EUROSAT, boa_offset=0
    )

    def band_file(folder):
        return lambda sample, band: folder.glob(f"**/{sample}/{sample}_{band}.tif")

    return {
        "bigearthnet_v1": (BigEarthNetV1Config(root=str(v1)), 6, band_file(v1)),
        "bigearthnet_v2": (BigEarthNetV2Config(root=str(v2)), 2, band_file(v2)),
        "eurosat_ms": (eurosat, 198, None),
    }


@pytest.mark.parametrize("name", ["bigearthnet_v1", "bigearthnet_v2", "eurosat_ms"])
def test_shards_hold_what_rasterio_reads_for_every_sample_and_band(real_data, tmp_path, name):
    source, num_patches, find = real_sources(real_data)[name]
    manifest = pack(PackConfig(source=source, output=str(tmp_path), shard_size_mib=2))
    samples = samples_of(tmp_path)
    assert len(samples) == manifest.rows == num_patches
    columns = {band: [] for band in manifest.layout.bands}
    for sample, pixels in samples.items():
        for group in manifest.layout.groups:
            for channel, band in enumerate(group.bands):
                if find is None:
                    path, number = real_data / name / f"{sample}.tif", EUROSAT.index(band) + 1
                else:
                    (path,), number = find(sample, band), 1
                with rasterio.open(path) as dataset:
                    expected = dataset.read(number)
                assert np.array_equal(pixels[group.name][channel], expected)
                columns[band].append(expected.ravel())
    for band, parts in columns.items():
        values = np.concatenate(parts).astype(np.float64)
        valid = values[(values != 0) & (values != 65535)]
        found = manifest.statistics[band]
        assert (found.count, found.minimum, found.maximum) == (valid.size, valid.min(), valid.max())
        assert found.mean == pytest.approx(valid.mean(), rel=1e-12)
        assert found.std == pytest.approx(valid.std(), rel=1e-9)
    assert verify(VerifyConfig(shards=str(tmp_path))).ok


@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_the_bytes_do_not_depend_on_the_number_of_parts(tree, tmp_path, num_parts):
    pack(config_of(tree, tmp_path / "one"))
    results = [
        pack(config_of(tree, tmp_path / "many"), part, num_parts)
        for part in reversed(range(num_parts))
    ]
    assert [result is not None for result in results] == [False] * (num_parts - 1) + [True]
    assert digests(tmp_path / "one") == digests(tmp_path / "many")


def test_shards_are_full_but_the_last(tree, tmp_path):
    manifest = pack(config_of(tree, tmp_path))
    assert [entry.rows for entry in manifest.shards] == [2, 2, 2, 1]
    assert [entry.file for entry in manifest.shards] == [f"shard-{k:05d}.h5" for k in range(4)]


def test_the_manifest_tells_where_the_shards_came_from(tree, tmp_path):
    provenance = pack(config_of(tree, tmp_path)).provenance
    assert provenance["settings"]["source.root"] == str(tree)
    assert (provenance["patches_found"], provenance["patches_rejected"]) == (7, 0)
    assert provenance["label_counts"]["bigearthnet43"]["Pastures"] == 7
    assert provenance["versions"]["rasterio"] == rasterio.__version__
    assert "notice" not in provenance


def test_a_limit_packs_the_first_patches(tree, tmp_path):
    assert pack(config_of(tree, tmp_path, limit=3)).rows == 3


def test_simulated_shards_say_so_in_the_manifest(tmp_path):
    source = SimulatedConfig(root=str(tmp_path / "root"), num_patches=2)
    manifest = pack(PackConfig(source=source, output=str(tmp_path / "out")))
    assert manifest.simulated
    assert "never measured" in manifest.provenance["notice"]


def test_packing_again_touches_nothing(tree, tmp_path):
    first = pack(config_of(tree, tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert pack(config_of(tree, tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("gone", ["shard-00001.h5", "manifest.json", "packing/shard-00002.json"])
def test_what_is_missing_is_made_again_and_the_rest_is_kept(tree, tmp_path, gone):
    pack(config_of(tree, tmp_path))
    before, kept = digests(tmp_path), (tmp_path / "shard-00000.h5").stat().st_mtime_ns
    (tmp_path / gone).unlink()
    pack(config_of(tree, tmp_path))
    assert digests(tmp_path) == before
    assert (tmp_path / "shard-00000.h5").stat().st_mtime_ns == kept


def test_without_a_manifest_a_damaged_shard_is_packed_again(tree, tmp_path):
    pack(config_of(tree, tmp_path))
    before = digests(tmp_path)
    flip_bit(tmp_path / "shard-00001.h5", 100_000)
    (tmp_path / "manifest.json").unlink()
    pack(config_of(tree, tmp_path))
    assert digests(tmp_path) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_manifest_that_was_removed_comes_back_for_whole_shards_only(tree, tmp_path, order):
    config = config_of(tree, tmp_path)
    pack(config)
    before = digests(tmp_path)
    flip_bit(tmp_path / "shard-00000.h5", 100_000)
    flip_bit(tmp_path / "shard-00001.h5", 100_000)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(PackError, match=r"\(shard-00000\.h5, shard-00001\.h5\)"):
        finish(config)
    first, second = (pack(config, part, 2) for part in order)
    assert (first, second is not None) == (None, True)
    assert digests(tmp_path) == before


def test_a_shard_of_which_no_patch_is_left_goes(tmp_path):
    folders = bigearthnet_v1(tmp_path / "tree", 4)
    config = config_of(tmp_path / "tree", tmp_path / "out", max_rejected=0.5)
    pack(config)
    flip_bit(tmp_path / "out" / "shard-00000.h5", 100_000)
    (tmp_path / "out" / "manifest.json").unlink()
    for folder in folders[:2]:
        (folder / f"{folder.name}_B02.tif").unlink()
    assert [entry.file for entry in pack(config).shards] == ["shard-00001.h5"]
    assert not (tmp_path / "out" / "shard-00000.h5").exists()


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


CHILD = """
import sys
from preprocess.config import PackConfig
from preprocess.sources.simulated import SimulatedConfig
from preprocess.pack import pack
source = SimulatedConfig(root=sys.argv[1], num_patches=60)
pack(PackConfig(source=source, output=sys.argv[2], shard_size_mib=0.8), progress=False)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    root, output = folder / "root", folder / "shards"
    subprocess.run([sys.executable, "-c", CHILD, root, output], check=True, cwd=REPOSITORY)
    return root, digests(output)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "packing/.plan.jsonl.*.tmp",
        "packing/plan.jsonl",
        ".shard-00000.h5.*.tmp",
        "packing/shard-00002.json",
        ".shard-00007.h5.*.tmp",
        "shard-00011.h5",
        "manifest.json",
    ],
)
def test_a_kill_at_any_moment_costs_no_byte(undisturbed, tmp_path, moment):
    root, expected = undisturbed
    output = tmp_path / "shards"
    child = subprocess.Popen([sys.executable, "-c", CHILD, root, output], cwd=REPOSITORY)
    while child.poll() is None and not any(output.glob(moment)):
        time.sleep(0.0005)
    child.send_signal(signal.SIGKILL)
    # towards its end the child may be faster than the signal
    assert child.wait() == -signal.SIGKILL or moment in ("shard-00011.h5", "manifest.json")
    subprocess.run([sys.executable, "-c", CHILD, root, output], check=True, cwd=REPOSITORY)
    assert digests(output) == expected


@pytest.mark.slow
def test_parts_that_start_together_from_nothing_agree(undisturbed, tmp_path):
    # they simulate, plan and pack side by side, in one root and one output
    code = CHILD.replace("progress=False", "int(sys.argv[3]), 3, progress=False")
    root, output = tmp_path / "root", tmp_path / "shards"
    children = [
        subprocess.Popen([sys.executable, "-c", code, root, output, str(part)], cwd=REPOSITORY)
        for part in range(3)
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    shards = {name: digest for name, digest in digests(output).items() if name.endswith(".h5")}
    assert shards == {name: d for name, d in undisturbed[1].items() if name.endswith(".h5")}
    assert verify(VerifyConfig(shards=str(output))).ok
    assert not list(output.glob(".*"))
    assert not list((root / "BigEarthNet-v1.0").glob(".*"))


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    host = os.uname().nodename
    names = {
        f".manifest.json.{host}-{dead}.tmp": False,
        f".manifest.json.{host}-{os.getpid()}.tmp": True,
        f".manifest.json.another-node-{dead}.tmp": True,
        f".shard-00003.h5.another-node-{dead}.tmp": False,
        f"..shard-00003.h5.another-node-{dead}.tmp.another-node-{dead}.tmp": False,
        f".shard-00004.h5.another-node-{dead}.tmp": True,
        f".shard-000031.h5.another-node-{dead}.tmp": True,
        "notes.tmp": True,
    }
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, shard=3)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_bad_input_stops_packing_with_one_line_and_no_manifest(spoilt, tmp_path):
    root, path, _ = spoilt
    message = r"1 of 6 patches are bad.*max_rejected=0\.01; .*_B03\.tif: cannot"
    with pytest.raises(PackError, match=message):
        pack(config_of(root, tmp_path / "out"))
    left = {file for file in digests(tmp_path / "out") if not file.startswith("packing/")}
    assert left == {"shard-00000.h5", "rejected.jsonl"}
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert rejected["id"] == path.parent.name
    assert rejected["file"] == path.relative_to(root).as_posix()
    assert "cannot be read" in rejected["reason"]


def test_on_error_stop_names_the_first_bad_file(spoilt, tmp_path):
    root, _, _ = spoilt
    config = config_of(root, tmp_path / "out", on_error=OnError.stop, max_rejected=1)
    with pytest.raises(PatchError, match=r"_B03\.tif: cannot be read"):
        pack(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_tolerated_bad_input_makes_a_shorter_shard_without_a_hole(spoilt, tmp_path, caplog):
    root, path, _ = spoilt
    with caplog.at_level(logging.WARNING):
        manifest = pack(config_of(root, tmp_path / "out", max_rejected=0.2))
    assert [entry.rows for entry in manifest.shards] == [2, 1, 2]
    assert path.parent.name in caplog.text
    assert path.parent.name not in samples_of(tmp_path / "out")
    assert manifest.provenance["patches_rejected"] == 1
    assert sum(manifest.provenance["reasons_of_rejection"].values()) == 1
    assert verify(VerifyConfig(shards=str(tmp_path / "out"))).ok


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_mended_input_is_taken_in_by_the_next_run(spoilt, tmp_path, share):
    root, path, content = spoilt
    config = config_of(root, tmp_path / "out", max_rejected=share)
    if share:
        assert pack(config).rows == 5
    else:
        with pytest.raises(PackError):
            pack(config)
    path.write_bytes(content)
    assert pack(config).rows == 6
    pack(config_of(root, tmp_path / "sound", max_rejected=share))
    assert digests(tmp_path / "out") == digests(tmp_path / "sound")


def test_a_tolerated_bad_input_does_not_pack_its_shard_again(spoilt, tmp_path):
    root, _, _ = spoilt
    first = pack(config_of(root, tmp_path / "out", max_rejected=0.2))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert pack(config_of(root, tmp_path / "out", max_rejected=0.2)) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_share_of_bad_inputs_that_is_tolerated_exactly_is_tolerated(tmp_path):
    folders = bigearthnet_v1(tmp_path / "tree", 50, bands=["B09"])
    for folder in folders[:29]:  # as floats, 0.58 times 50 is less than 29
        (folder / f"{folder.name}_B09.tif").unlink()
    source = BigEarthNetV1Config(root=str(tmp_path / "tree"), bands=["B09"])
    settings = {"source": source, "output": str(tmp_path / "out")}
    with pytest.raises(PackError, match=r"29 of 50 patches are bad, more than max_rejected=0\.57"):
        pack(PackConfig(**settings, max_rejected=0.57))
    assert pack(PackConfig(**settings, max_rejected=0.58)).rows == 21


def test_a_higher_tolerance_goes_on_where_the_lower_one_stopped(spoilt, tmp_path):
    root, _, _ = spoilt
    with pytest.raises(PackError):
        pack(config_of(root, tmp_path / "out"))
    kept = (tmp_path / "out" / "shard-00000.h5").stat().st_mtime_ns
    assert pack(config_of(root, tmp_path / "out", max_rejected=0.5)).rows == 5
    assert (tmp_path / "out" / "shard-00000.h5").stat().st_mtime_ns == kept


def test_a_shard_of_bad_inputs_only_leaves_no_file(tmp_path):
    for folder in bigearthnet_v1(tmp_path / "tree", 4)[:2]:
        (folder / f"{folder.name}_B02.tif").unlink()
    config = config_of(tmp_path / "tree", tmp_path / "out", max_rejected=0.5)
    manifest = pack(config)
    assert pack(config) == manifest
    assert [entry.file for entry in manifest.shards] == ["shard-00001.h5"]
    assert not (tmp_path / "out" / "shard-00000.h5").exists()


def test_a_source_without_a_good_patch_is_an_error(tmp_path):
    (folder,) = bigearthnet_v1(tmp_path / "tree", 1)
    (folder / f"{folder.name}_B02.tif").unlink()
    with pytest.raises(PackError, match="no patch of"):
        pack(config_of(tmp_path / "tree", tmp_path / "out", max_rejected=1))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_patch_of_nodata_is_left_out(tmp_path):
    folders = bigearthnet_v1(tmp_path / "tree", 2)
    for band in ("B02", "B03", "B04", "B08"):
        path = folders[0] / f"{folders[0].name}_{band}.tif"
        write_geotiff(path, np.zeros((1, 120, 120), np.uint16))
    with pytest.raises(PackError, match="every pixel is nodata"):
        pack(config_of(tmp_path / "tree", tmp_path / "out"))


def test_an_output_of_other_settings_is_refused_with_the_keys(tree, tmp_path):
    pack(config_of(tree, tmp_path / "out"))
    before = digests(tmp_path / "out")
    other = config_of(tree, tmp_path / "out", shard_size_mib=1)
    other.source.bands = ["B02"]
    with pytest.raises(
        ValueError, match=r"source\.bands was \[\], now \['B02'\]; shard_size_mib was 0\.35, now 1"
    ):
        pack(other)
    assert digests(tmp_path / "out") == before


def test_an_output_of_another_source_is_refused_in_few_words(tree, tmp_path):
    pack(config_of(tree, tmp_path / "out"))
    source = BigEarthNetV2Config(root=str(tree))
    with pytest.raises(ValueError, match="kind was 'bigearthnet_v1', now") as caught:
        pack(PackConfig(source=source, output=str(tmp_path / "out"), shard_size_mib=0.35))
    assert "None" not in str(caught.value)


def test_an_output_with_other_things_is_refused_and_left_alone(tree, tmp_path):
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(ValueError, match=r"not empty \(it holds thesis\.doc\)"):
        pack(config_of(tree, tmp_path))
    assert digests(tmp_path).keys() == {"thesis.doc"}


def test_an_output_that_is_a_file_is_refused(tree, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ValueError, match="which is a file"):
        pack(config_of(tree, tmp_path / "out"))


def test_a_wrong_root_leaves_no_trace_in_the_output(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no patch folder"):
        pack(config_of(tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_source_of_which_all_is_excluded_is_refused(tree, tmp_path):
    names = tmp_path / "all.csv"
    names.write_text("".join(f"{folder.name}\n" for folder in tree.iterdir()))
    config = config_of(tree, tmp_path / "out")
    config.source.exclude_lists = [str(names)]
    with pytest.raises(ValueError, match="holds no patch"):
        pack(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part", "num_parts"), [(1, 1), (-1, 2), (3, 3)])
def test_a_part_out_of_range_is_refused(tree, tmp_path, part, num_parts):
    with pytest.raises(ValueError, match=f"part is {part} of {num_parts}"):
        pack(config_of(tree, tmp_path), part, num_parts)


def test_an_empty_output_is_named(tree):
    with pytest.raises(ValueError, match="output is empty"):
        pack(config_of(tree, ""))


def test_bands_are_stored_in_the_order_asked_for(tree, tmp_path):
    config = config_of(tree, tmp_path / "out")
    config.source.bands = ["B12", "B04", "B02"]
    manifest = pack(config)
    assert manifest.layout.bands == ("B04", "B02", "B12")
    folder = sorted(tree.iterdir())[0]
    with rasterio.open(folder / f"{folder.name}_B02.tif") as dataset:
        stored = samples_of(tmp_path / "out")[folder.name]["b10"][1]
        assert np.array_equal(stored, dataset.read(1))


def test_every_missing_setting_is_named_in_one_message(tmp_path):
    config = PackConfig(source=GeotiffConfig(), compression="zip")
    with pytest.raises(ValueError, match=r"output is empty.*compression is 'zip'.*root is empty"):
        pack(config, progress=False)
    (tmp_path / "tifs").mkdir()
    (tmp_path / "tifs" / "a.txt").touch()
    config = PackConfig(source=GeotiffConfig(root=str(tmp_path / "tifs")))
    with pytest.raises(ValueError, match=r"output is empty.*; .*tifs"):
        pack(config, progress=False)


def test_a_pack_that_wrote_no_shard_leaves_its_folder_to_the_corrected_command(tmp_path):
    root = tmp_path / "tifs"
    for number in range(2):
        write_geotiff(root / f"p{number}.tif", np.full((1, 30, 30), 500, np.uint16))

    def config(**settings):
        source = GeotiffConfig(root=str(root), file_bands=["B02"], boa_offset=0, **settings)
        return PackConfig(source=source, output=str(tmp_path / "out"))

    with pytest.raises(PackError, match="of 2 patches are bad"):
        pack(config(), progress=False)
    manifest = pack(config(size_px=30), progress=False)
    assert manifest is not None
    assert manifest.rows == 2
    assert read_manifest(tmp_path / "out") == manifest
    assert (tmp_path / "out" / "rejected.jsonl").read_text() == ""
    with pytest.raises(ValueError, match=r"size_px was 30, now 15;.*give another output"):
        pack(config(size_px=15, cut=True), progress=False)


def test_a_plan_of_another_version_is_refused_with_the_fix(tmp_path, tree):
    config = config_of(tree, tmp_path / "s")
    pack(config, progress=False)
    plan = tmp_path / "s" / "packing" / "plan.jsonl"
    head, rest = plan.read_text().split("\n", 1)
    without = {key: value for key, value in json.loads(head).items() if key != "processing_level"}
    plan.write_text(json.dumps(without) + "\n" + rest)
    with pytest.raises(ValueError, match=r"another version .*no processing_level.*another output"):
        pack(config, progress=False)


def test_a_shard_in_the_making_keeps_its_folder(tmp_path, tree):
    pack(config_of(tree, tmp_path / "out", limit=2), progress=False)
    shard = tmp_path / "out" / "shard-00000.h5"
    shard.rename(shard.with_name(".shard-00000.h5.othernode-1.tmp"))
    with pytest.raises(ValueError, match="limit was 2, now 4"):
        pack(config_of(tree, tmp_path / "out", limit=4), progress=False)


def test_nan_marks_nodata_on_the_second_start_too(tmp_path):
    write_geotiff(tmp_path / "tifs" / "p.tif", np.full((1, 12, 12), 0.5, np.float32))
    settings = {"file_bands": ["B02"], "size_px": 12, "boa_offset": 0, "values": "reflectance"}
    source = GeotiffConfig(root=str(tmp_path / "tifs"), nodata=float("nan"), **settings)
    config = PackConfig(source=source, output=str(tmp_path / "out"), shard_size_mib=1)
    again = PackConfig(source=source, output=str(tmp_path / "out"), shard_size_mib=1.0)
    assert pack(config, progress=False) == pack(again, progress=False)


def test_a_plan_that_lacks_a_setting_is_of_another_version(tmp_path, tree):
    config = config_of(tree, tmp_path / "s")
    pack(config, progress=False)
    plan = tmp_path / "s" / "packing" / "plan.jsonl"
    plan.write_text(plan.read_text().replace('"source.train_list": "", ', "", 1))
    with pytest.raises(ValueError, match="other settings: another version of this program wrote"):
        pack(config, progress=False)


def test_a_shard_of_any_size_holds_all_patches(tmp_path, tree):
    manifest = pack(config_of(tree, tmp_path, shard_size_mib=float("inf")), progress=False)
    assert [entry.rows for entry in manifest.shards] == [7]
