"""What a site may rely on: no secrets kept, the umask kept, no value run by a shell."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from make_data import packed_arrays

from jobs.commands.evaluate import Export
from jobs.commands.pretrain import Pretrain
from jobs.config import ClusterConfig, Executor
from jobs.launch import run
from jobs.slurm.submit import script
from simclr.config import AugmentConfig, DataConfig, EncoderName, ModelConfig, TrainConfig
from simclr.export import ExportConfig

SECRET = "a-token-that-nobody-may-keep-4711"
AWKWARD = "a b'c\"d$(touch caught)`touch caught`;touch caught é"
PACKAGES = ("hydra_plugins", "jobs", "preprocess", "simclr")
# Each runs what it reads, or hands text to a shell.
REFUSED = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads",
    "joblib.load", "yaml.load", "yaml.unsafe_load", "subprocess.getoutput",
}  # fmt: skip


def calls() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """Yield where a call stands, the name called and its keywords, for all our code."""
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    keywords = {word.arg or "**": word.value for word in node.keywords}
                    place = f"{path.relative_to(REPOSITORY)}:{node.lineno}"
                    yield place, ast.unparse(node.func), keywords


def test_no_code_runs_what_it_reads_or_hands_text_to_a_shell():
    found = [(place, name) for place, name, _ in calls() if name in REFUSED]
    shells = [place for place, _, words in calls() if "shell" in words]
    assert found == []
    assert shells == []


def test_files_of_tensors_and_arrays_are_read_without_pickle():
    loads = [(place, name, words) for place, name, words in calls() if name.endswith(".load")]
    # the graph that an export has just written itself is read back to be checked
    loads = [one for one in loads if one[1] != "torch.export.load" or "export/export" not in one[0]]
    torch = {place: words.get("weights_only") for place, name, words in loads if "torch" in name}
    numpy = {place: words.get("allow_pickle") for place, name, words in loads if "np." in name}
    assert torch
    assert {ast.unparse(value) if value else "" for value in torch.values()} == {"True"}, torch
    assert {ast.unparse(value) for value in numpy.values() if value} <= {"False"}, numpy


@pytest.fixture
def training(tmp_path) -> TrainConfig:
    """Return settings of a training that takes seconds, in folders with every awkward sign."""
    bands = ["B02", "B04"]
    shards = packed_arrays(tmp_path / AWKWARD / "shards\nof two lines", bands=bands)
    return TrainConfig(
        shards=[str(shards)],
        run_dir=str(tmp_path / AWKWARD / "a run"),
        max_steps=2,
        data=DataConfig(bands=bands, global_batch_size=8, num_threads=1),
        augment=AugmentConfig(view_size_px=12),
        model=ModelConfig(encoder=EncoderName.resnet18),
    )


@pytest.mark.slow
def test_a_run_keeps_no_secret_and_the_umask_and_runs_no_name(
    training, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("SITE_API_TOKEN", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o077)
    try:
        run(Pretrain(training), ClusterConfig(executor=Executor.local))
        export = ExportConfig(run=training.run_dir, output=str(tmp_path / AWKWARD / "an encoder"))
        run(Export(export), ClusterConfig())
    finally:
        os.umask(before)
    made = [*Path(training.run_dir).rglob("*"), *Path(export.output).rglob("*")]
    files = [path for path in made if path.is_file()]
    assert {"config.yaml", "provenance.json", "card.json"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in "".join(capfd.readouterr())
    open_to_others = [path for path in made if not path.is_symlink() and path.stat().st_mode & 0o77]
    assert open_to_others == []
    assert list(tmp_path.rglob("caught")) == []


def test_values_of_a_batch_script_are_values_for_the_shell_too(training, tmp_path):
    cluster = ClusterConfig(
        executor=Executor.slurm,
        partition=AWKWARD,
        account=AWKWARD,
        python=str(tmp_path / AWKWARD / "python"),
        scratch="/tmp/it's for $USER/${SLURM_JOB_ID}",
        extra={"comment": AWKWARD},
    )
    task = Pretrain(training)
    text = script([task], Path(training.run_dir) / "slurm", cluster)
    (tmp_path / "srun").symlink_to("/bin/echo")  # shows the words that srun would get
    done = subprocess.run(
        ["bash", "-euc", text],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "USER": "me", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert list(tmp_path.rglob("caught")) == []
    assert f"{tmp_path / AWKWARD / 'python'} -u -m submitit" in done.stdout
    assert done.stdout.rstrip().endswith(str(Path(training.run_dir) / "slurm"))


@pytest.mark.parametrize(
    "values",
    [
        {"partition": "gpu\ntouch caught"},
        {"account": "me\rtouch caught"},
        {"extra": {"comment": "a\ntouch caught"}},
        {"extra": {"comment=a\ntouch caught #": "b"}},
        {"scratch": "/tmp/$(touch caught)"},
        {"scratch": "/tmp/`touch caught`"},
        {"scratch": '/tmp"; touch caught; "'},
        {"scratch": "/tmp\ntouch caught"},
    ],
)
def test_a_value_that_would_be_a_command_is_refused_with_its_name(values):
    with pytest.raises(ValueError, match=r"^cluster.*give (a path|one line)"):
        ClusterConfig(executor=Executor.slurm, **values)


def test_a_folder_of_two_lines_is_no_place_for_a_batch_script(training, tmp_path):
    cluster = ClusterConfig(executor=Executor.slurm)
    with pytest.raises(ValueError, match=r"has a line break in it"):
        script([Pretrain(training)], tmp_path / "a\ntouch caught", cluster)
