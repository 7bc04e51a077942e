"""Wrong use is one line on stderr with key, value and fix, and leaves nothing behind."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable

import pytest
from contract.console import TRAINING, call

# what is typed; what the line must hold besides: key, value seen, and what to give instead
WRONG_USE = [
    ("pretrain optim.lerning_rate=1", "optim.lerning_rate", "did you mean learning_rate"),
    ("pretrain learning_rate=1", "learning_rate", "did you mean optim.learning_rate"),
    ("pretrain recipe=lptop", "recipe", "lptop", "did you mean laptop", "recommended"),
    ("pretrain cluster=lptop", "cluster", "lptop", "did you mean laptop", "slurm_example"),
    ("pretrain optim.learning_rate=fast", "optim.learning_rate", "fast", "number"),
    ("pretrain optim.learning_rate=1,2", "optim.learning_rate", "1,2", "-m", "[1,2]"),
    ("pretrain epochs=1.5", "epochs", "1.5", "whole number"),
    ("pretrain debug=maybe", "debug", "maybe", "true or false"),
    ("pretrain model.encoder=resnet1", "model.encoder", "'resnet1'", "resnet18", "resnet152"),
    ("pretrain loss.name=ntxnt", "loss.name", "'ntxnt'", "ntxent", "dcl"),
    ("pretrain loss.temperature=0", "loss.temperature", "0", "above 0"),
    ("pretrain", "run_dir", "empty", "run_dir="),
    ("pretrain run_dir=r", "shards", "empty", "shards=["),
    ("pretrain run_dir=null", "run_dir", "null"),
    ("pretrain run_dir=r shards=nowhere", "nowhere", "manifest.json", "not packed"),
    ("pretrain run_dir=r shards=[nowhere]", "nowhere", "manifest.json", "not packed"),
    ("pretrain run_dir='a=b('", "'run_dir=a=b('", "quotes", "'run_dir=\"a=b(\"'"),
    ("pretrain run_dir=r shards=[{shards}] cluster.nodes=2", "cluster.nodes", "2", "slurm"),
    (
        "pretrain run_dir=r shards=[{shards}] cluster=laptop data.global_batch_size=9",
        *("data.global_batch_size", "9", "2 ranks", "8 or 10"),
    ),
    ("pretrain run_dir=r shards=[{shards}] data.bands=[B99]", "B99", "B01", "B12"),
    (
        "pretrain run_dir=r shards=[{shards}] cluster=slurm_example cluster.time_min=1",
        *("cluster.signal_delay_s", "120", "60 s", "cluster.time_min="),
    ),
    (
        "pretrain run_dir=r shards=[{shards}] cluster=slurm_example cluster.after='a b'",
        *("cluster.after", "'a b'", "cluster.after=12"),
    ),
    ("pretrain --config-dir=nowhere", "--config-dir", "nowhere", "cluster/mine.yaml"),
    ("pretrain --loud", "--loud", "--help", "--cfg job", "--dry-run", "key=value"),
    ("pretrain recipe laptop", "'recipe'", "key=value"),
    ("pack", "source", "missing", "bigearthnet_v1", "simulated"),
    ("pack source=eurosat output=o", "source.root", "empty", "source.root="),
    ("pack source=eurosat source.root=. output=o", "GeoTIFF", ".tif"),
    (
        "pack source=eurosat source.root='no where' output=o",
        "source.root",
        "no where",
        "not a folder",
    ),
    ("pack source=eurosat source.root=.", "output", "empty", "output="),
    (
        "pack source=eurosat source.root=. output=o compression=zip",
        *("compression", "'zip'", "none", "gzip", "zstd"),
    ),
    ("pack source=eurosat source.size=1", "source.size", "did you mean size_px"),
    ("pack source=simulated source.root=r output=o shard_size_mib=0", "shard_size_mib", "0", "MiB"),
    (
        "pack source=simulated source.root={rasters} source.num_patches=63 output={shards}",
        *("{shards}", "source.num_patches", "64", "63", "another output"),
    ),
    ("verify", "shards", "empty", "shards="),
    ("verify shard=x", "shard", "did you mean shards"),
    ("verify shards=nowhere", "nowhere", "manifest.json"),
    ("evaluate run=nowhere shards={shards} task=x", "run", "nowhere", "not a folder"),
    ("evaluate run={workspace} shards={shards}", "task", "empty", "task="),
    ("evaluate run={workspace} shards={shards} task=x seeds=[-1]", "seeds", "[-1]", "0 to"),
    ("evaluate run={workspace} shards={shards} task=x bootstrap=9", "bootstrap", "9", "100 to"),
    (
        "evaluate run={workspace} shards={shards} task=x protocols=[magic]",
        *("protocols", "'magic'", "knn", "probe", "finetune_all"),
    ),
    ("export run={workspace}", "output", "empty", "output="),
    ("export run=nowhere output=e", "run", "nowhere", "not a folder"),
    ("export run={workspace} output=e formats=[zip]", "formats", "'zip'", "onnx", "pt2", "pth"),
    ("inspect shards=nowhere", "nowhere", "manifest.json"),
    ("inspect shards={shards} what=all", "what", "'all'", "shards", "augment"),
    ("study study=nonsense output=o", "study", "'nonsense'", "augmentation", "rate", "labels"),
    ("study study=rate", "output", "empty", "output="),
    (
        "study study=rate output=o shards=[{shards}] tasks=[bigearthnet19] arms=[nonsense]",
        *("arms", "nonsense", "study=rate", "0.0001"),
    ),
    (
        "study study=rate output=o shards=[{shards}] tasks=[nonsense]",
        *("'nonsense'", "bigearthnet19", "irrigation_regular"),
    ),
    ("chain", "pack", "pretrain", "evaluate", "export"),
    ("chain pretain epochs=1", "did you mean pretrain"),
    ("chain pack", "source", "missing", "simulated"),
    ("chain export output=e", "run", "empty", "run="),
    ("chain verify shard=x", "shard", "did you mean shards"),
    ("status nowhere", "nowhere", "config.yaml"),
    ("status --wach", "--wach", "--watch", "--json"),
    ("status --watch=2", "--watch=2", "10 or more"),
    ("doctor --loud", "--loud", "folders"),
]
# found only with the run or its checkpoints at hand
OF_A_RUN = [
    (
        "pretrain recipe=laptop shards=[{shards}] run_dir={run} seed=7",
        *("{run}", "seed: 0, now 7", "another run_dir"),
    ),
    ("evaluate run={run} shards={shards} task=eurosat", "'eurosat'", "bigearthnet19"),
    ("evaluate run={run} shards={shards} task=bigearthnet19 step=9", "{run}", "9", "20, 24"),
    ("export run={run} output=e step=9", "{run}", "9", "20, 24"),
]


def missing(error: str, told: Iterable[str]) -> list[str]:
    """Return what a line does not hold; as whole words, so that 9 is not found in 4096."""

    def holds(text: str) -> bool:
        first, last = (r"\b" * text[edge].isalnum() for edge in (0, -1))
        return bool(re.search(first + re.escape(text) + last, error))

    return [text for text in told if not holds(text)]


@pytest.fixture
def refused(tmp_path):
    """Return a function that gives a command in an empty folder, and returns its one line."""

    def give(line: str, code: int = 2) -> str:
        command, *arguments = shlex.split(line)
        ended = call(command, *arguments, cwd=tmp_path)
        assert (ended.code, ended.out) == (code, ""), ended
        assert ended.err.startswith(f"simclr-{command}: ")
        assert ended.err.count("\n") == 1
        assert ended.err.endswith("\n")
        assert list(tmp_path.iterdir()) == []
        return ended.err

    return give


@pytest.mark.parametrize(("line", "told"), [(line, told) for line, *told in WRONG_USE])
def test_wrong_use_is_one_line_with_key_value_and_fix(refused, packed, line, told):
    names = {"workspace": packed.folder.parent, "shards": packed.folder}
    names["rasters"] = packed.folder.parent / "rasters"
    error = refused(line.format(**names))
    assert missing(error, [word.format(**names) for word in told]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("line", "told"), [(line, told) for line, *told in OF_A_RUN])
def test_wrong_use_of_a_run_names_what_it_holds(refused, packed, trained, line, told):
    names = {"run": trained.folder, "shards": packed.folder}
    error = refused(line.format(**names))
    assert missing(error, [word.format(**names) for word in told]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.bands=[B10]", ("B10", "simulated", "B02", "set data.bands")),
        ("data.global_batch_size=4096", ("data.global_batch_size", "4096", "48", "lower it")),
    ],
)
def test_what_only_the_shards_can_refuse_is_wrong_use_too(packed, tmp_path, setting, told):
    ended = call(
        *("pretrain", *TRAINING, f"shards=['{packed.folder}']", "run_dir=r", setting), cwd=tmp_path
    )
    assert (ended.code, ended.out) == (2, "")
    error = ended.err.splitlines()[-1]
    assert ended.err.count("simclr-pretrain: ") == 1
    assert missing(error, told) == []
    assert not list(tmp_path.glob("r/checkpoints/*"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("partition: [", ("mine.yaml", "line 1", "key: value")),
        ("- gpu", ("mine.yaml", "key: value")),
        ("partitoin: gpu", ("mine.yaml", "cluster.partitoin", "did you mean partition")),
        ("nodes: many", ("cluster.nodes", "many", "whole number")),
    ],
)
def test_a_wrong_file_of_settings_is_named_with_the_fix(tmp_path, text, told):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(text)
    ended = call("pretrain", "--config-dir=.", "cluster=mine", "run_dir=r", cwd=tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert missing(ended.err, told) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("decimatoin: 1", ("mine.yaml", "source.decimatoin", "did you mean source.decimation")),
        ("select: {monthz: [1]}", ("mine.yaml", "source.select.monthz", "did you mean months")),
    ],
)
def test_a_wrong_file_of_a_source_is_named_with_the_settings_of_that_source(tmp_path, text, told):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "mine.yaml").write_text(f"defaults: [cog_l2a, _self_]\n{text}\n")
    ended = call("pack", "--config-dir=.", "source=mine", "source.root=r", cwd=tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert missing(ended.err, told) == []


def test_a_machine_without_slurm_is_told_so_by_key_and_value(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ("recipe=laptop", f"shards=['{packed.folder}']", "run_dir=r")
    ended = call("pretrain", *settings, "cluster=slurm_cpu_example", cwd=tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert missing(ended.err, ("cluster.executor", "slurm", "sbatch")) == []


def test_a_cluster_file_is_not_written_where_there_is_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = call("doctor", "--write-cluster=mine.yaml", cwd=tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert missing(ended.err, ("--write-cluster=mine.yaml", "Slurm", "login node")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_refused_submission_fails_with_slurms_words(packed, tmp_path, monkeypatch):
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "sinfo"):
        (commands / name).write_text(
            "#!/bin/sh\necho 'sbatch: error: Invalid account' >&2\nexit 1\n"
        )
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    settings = ("recipe=laptop", f"shards=['{packed.folder}']", "run_dir=r")
    ended = call("pretrain", *settings, "cluster=slurm_cpu_example", cwd=tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "Invalid account" in ended.err


@pytest.mark.parametrize(
    ("command", "wrong", "told"),
    [
        ("pretrain", "epochs=1", "run_dir is empty"),
        ("status", "nowhere", "nowhere is not a run folder"),
        ("doctor", "--loud", "--loud is not an option"),
        ("chain", "epochs=1", "no stage is named"),
    ],
)
def test_debug_shows_where_an_error_came_from(tmp_path, command, wrong, told):
    ended = call(command, wrong, "debug=true", cwd=tmp_path)
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith(f"simclr-{command}: {told}")


@pytest.mark.slow
def test_a_damaged_shard_fails_by_name_and_is_repaired_to_the_byte(packed, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(packed.folder, copy)
    shard = copy / "shard-00001.h5"
    whole = bytearray(shard.read_bytes())
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    arguments = (f"shards={copy}", f"root={packed.folder.parent / 'rasters'}")
    ended = call("verify", arguments[0], cwd=tmp_path)
    assert ended.code == 1
    assert "shard-00001.h5" in ended.err.splitlines()[-1]
    assert ended.err.count("simclr-verify: ") == 1
    ended = call("verify", *arguments, "repair=true", cwd=tmp_path)
    assert ended.code == 0, ended
    assert shard.read_bytes() == whole
