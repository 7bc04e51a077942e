"""The command line as a person meets it: exit codes, one-line errors, help, quick starts."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from jobs import cli, commands
from jobs.cli.errors import explain
from jobs.cli.schema import (
    choices,
    default_of,
    description_of,
    help_page,
    refuse_misread,
    schema_of,
)
from jobs.commands.pretrain import Pretrain
from jobs.launch import JobError
from preprocess.sources import SOURCES

COMMANDS = {name: commands.load(name) for name in commands.WITH_SETTINGS}


def simclr(verb: str, *arguments: str, **options: typing.Any) -> subprocess.CompletedProcess[str]:
    """Run a verb as a command."""
    command = [sys.executable, "-m", f"jobs.commands.{verb}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Return a function that runs a verb in this process and returns its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(verb: str, *arguments: str, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", [f"simclr-{verb}", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main(COMMANDS[verb])
        printed = capsys.readouterr()
        assert ended.value.code == code, printed.err
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith(f"simclr-{verb}: ")
        return printed.err

    return run


def test_an_unknown_key_names_the_nearest_and_lists_those_of_its_level(refused):
    line = refused("pretrain", "optim.lerning_rate=1")
    assert "did you mean learning_rate? optim has: name, learning_rate, scaling," in line


def test_a_key_of_another_level_is_found(refused):
    assert "did you mean optim.learning_rate? " in refused("pretrain", "learning_rate=1")


def test_a_key_of_the_chosen_source_is_known(refused):
    line = refused("pack", "source=eurosat", "source.size=1")
    assert "size_px" in line
    assert "did you mean size_px" in line


def test_a_new_key_of_an_open_part_is_shown_how_to_add(refused):
    assert "+cluster.extra.begin=" in refused("pretrain", "cluster.extra.begin=now")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recipe=lptop"], "recipe is 'lptop'; did you mean laptop? choose one of laptop, paper"),
        (["cluster=lptop"], "cluster is 'lptop'; did you mean laptop?"),
        (["optim.learning_rate=fast"], "optim.learning_rate is fast; give a number"),
        (["epochs=1.5"], "epochs is 1.5; give a whole number"),
        (["debug=maybe"], "debug is maybe; give true or false"),
        (["run_dir=[a,b]"], "run_dir is ['a', 'b']; give one value, without brackets"),
        (["optim=adam"], "optim has settings of its own; give one of them: optim.NAME=..."),
        (["++optim.rate=1"], "'rate' is not a setting; leave it out"),
        (["hydra.launcher.nodes=2"], "hydra.launcher.nodes is not a setting; cluster= says"),
        (["++rate=1"], "'rate' is not a setting; leave it out"),
        (["cluster.setup=[{a: 1}]"], "cluster.setup holds {'a': 1}; give text in quotes"),
        (["model.pretrained=a.pt"], "model.pretrained is not a setting; model has: encoder, stem"),
        (["model.encoder=resnet1"], "model.encoder: Invalid value 'resnet1', expected one of"),
        (["shards=a", "run_dir=r"], "a holds no manifest.json"),
        (["shards=[a]", "run=r"], "a holds no manifest.json"),
        (["run_dir=a=b("], "in quotes: 'run_dir=\"a=b(\"'"),
        (["run_dir=Müll (neu)"], "in quotes: 'run_dir=\"Müll (neu)\"'"),
        (["shards=[a"], "in quotes: 'output=\"a (b)\"'"),
        (["run_dir=null"], "run_dir is null; give a value, or leave it out"),
        (["shards=[a,null]"], "shards[1] is null; give a value, or leave it out"),
        (["loss.temperature=0"], "loss.temperature is 0.0; give a value above 0"),
        ([], "run_dir is empty"),
        (["run_dir=r"], "shards is empty"),
        (["run_dir=r", "shards=[nowhere]"], "nowhere holds no manifest.json"),
        (["cluster.nodes=2"], "only slurm reaches other machines"),
        (["loss.temperature=inf"], "loss.temperature is inf; give a number"),
        (["data.weights=[1,nan]"], "data.weights[1] is nan; give a number"),
        (["optim.momentum=1"], "optim.momentum is 1.0; give 0 to below 1"),
        (["optim.reference_batch_size=0"], "optim.reference_batch_size is 0; give pairs"),
        (["augment.view_size_px=-1"], "augment.view_size_px is -1; give 0 for the patch's"),
        (["world.threads_per_rank=-1"], "world.threads_per_rank is -1; give 0 for all"),
        (["cluster.memory_gb=-4"], "cluster.memory_gb is -4.0; give 0 or more"),
        (["cluster.gpus_per_node=-1"], "cluster.gpus_per_node is -1; give 0 or more"),
        (["cluster=slurm_example", "cluster.after=a b"], "cluster.after is 'a b'; give job num"),
        (["cluster=laptop", "cluster.python=/no"], "cluster.python is /no, which is not a prog"),
        (["optim.learning_rate=1,2"], "optim.learning_rate is 1,2; several values need -m, a run"),
        (["recipe", "=", "laptop"], "'=' has no key in front; write key=value"),
        (["recipe"], "'recipe' is not a setting; write key=value without spaces"),
        (
            ["--config-dir=nowhere"],
            "--config-dir is 'nowhere', which is not a folder; give",
        ),
        (["--config-dir="], "--config-dir needs a value"),
    ],
)
def test_wrong_use_of_pretrain_is_one_line_with_the_value_and_the_cure(refused, arguments, told):
    assert told in refused("pretrain", *arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "source is missing; choose one of bigearthnet_v1"),
        (["source=eurosat", "source.root=no where", "output=o"], "source.root is no where, which"),
        (["source=eurosat", "output=o"], "source.root is empty"),
        (["source=eurosat"], "output=SHARDS; source.root is empty; give the folder of"),
        (["source=eurosat", "source.root=."], "output is empty"),
        (["source=safe_l2a", "source.select.start=x"], "source.select has: boxes, date_from"),
    ],
)
def test_wrong_use_of_pack_is_one_line_with_the_value_and_the_cure(refused, arguments, told):
    assert told in refused("pack", *arguments)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("partition: [", "mine.yaml, line 1 is not YAML (expected the node content"),
        ("- gpu", "cluster/mine.yaml holds no settings; write a line for each: key: value"),
        ("partitoin: gpu", "cluster/mine.yaml: cluster.partitoin is not a setting; did you mean "),
        ("nodes: many", "cluster.nodes is many; give a whole number"),
    ],
)
def test_a_wrong_file_of_settings_is_named_with_what_is_wrong_in_it(refused, tmp_path, text, told):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(text)
    line = refused("pretrain", "--config-dir=.", "cluster=mine", "run_dir=r", "shards=[a]")
    assert told in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["seeds=[-1]"], "seeds is [-1]; give whole numbers from 0 to 2^63 - 1"),
        (["seeds=[1,1]"], "give each seed once"),
        (["bootstrap=99999999999999"], "bootstrap is 99999999999999; give 100 to 1,000,000"),
        (["fractions=[nan]"], "fractions[0] is nan; give a number"),
    ],
)
def test_wrong_use_of_evaluate_is_one_line_with_the_value_and_the_cure(refused, arguments, told):
    assert told in refused("evaluate", "run=r", "shards=s", "task=t", *arguments)


def test_what_no_memory_can_hold_is_told_with_what_asks_for_less():
    for ask in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            ask()
        line, code = explain(raised.value, COMMANDS["pretrain"])
        assert re.match(r"out of memory for [\d.]+ \w+ more; lower data.global_batch_size", line)
        assert code == 1
    # a rank that somebody killed is not told to take a smaller batch
    killed = JobError("rank 0 ended without an error: killed, perhaps by the out-of-memory killer")
    assert explain(killed, None)[0] == str(killed)
    cuda = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")
    assert (
        explain(cuda, COMMANDS["evaluate"])[0]
        == "out of memory for 20.00 MiB more; lower batch_size"
    )


@pytest.mark.parametrize(
    ("name", "typed", "key", "value"),
    [
        ("pack", "output=2024_01_15", "output", "2024_01_15"),
        ("pack", "output=1e3", "output", "1e3"),
        ("pack", "source.root=007", "source.root", "007"),
        ("pack", "source.label_table=1_0", "source.label_table", "1_0"),
        ("pack", "source.name=true", "source.name", "true"),
        ("pack", "source.bands=B02", "source.bands", ["B02"]),
        ("pretrain", "shards=[2024_01,x,1.50,.5e1]", "shards", ["2024_01", "x", "1.50", ".5e1"]),
        ("pretrain", "shards=1_0", "shards", ["1_0"]),
        ("pretrain", "run=1e3", "run_dir", "1e3"),
        ("pretrain", "cluster.account=0123", "cluster.account", "0123"),
        ("pretrain", "cluster.account=null", "cluster.account", None),
        ("pretrain", "+cluster.extra.begin=2_0", "cluster.extra.begin", "2_0"),
        (
            "pretrain",
            "+cluster.extra={begin:2_0,a: b}",
            "cluster.extra",
            {"begin": "2_0", "a": "b"},
        ),
        ("pretrain", "+cluster.extra={comment:1e3}", "cluster.extra.comment", "1e3"),
        ("pretrain", "+cluster.extra={exclusive:true}", "cluster.extra.exclusive", "true"),
        ("pretrain", "optim.learning_rate=1e-3", "optim.learning_rate", 1e-3),
        ("pretrain", "run_dir='a, 1e3'", "run_dir", "a, 1e3"),
        ("verify", "shards=[2_0]", "shards", "2_0"),
        ("evaluate", "run_dir=1e3", "run", "1e3"),
        ("evaluate", "seeds=0", "seeds", [0]),
    ],
)
def test_text_stays_as_typed_and_either_spelling_is_understood(
    name, typed, key, value, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    source = ["source=geotiff"] if name == "pack" else []
    monkeypatch.setattr(sys, "argv", [name, *source, typed, "--cfg", "job"])
    with pytest.raises(SystemExit) as ended:
        cli.main(COMMANDS[name])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    found = OmegaConf.select(OmegaConf.create(printed.out), key)
    assert (OmegaConf.to_object(found) if OmegaConf.is_config(found) else found) == value


def test_two_folders_with_number_like_names_are_two(tmp_path):
    for name in ("1_0", "10"):
        arguments = ("source=simulated", "source.root=r", "source.num_patches=1")
        done = simclr("pack", *arguments, f"output={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"r", "1_0", "10"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("run_dir: 2024_01_15", "run_dir is 2024_01_15, which YAML reads as 20240115"),
        ("shards: [a, 1e3]", "shards is 1e3, which YAML reads as 1000.0"),
        ("cluster: {account: 0x1F}", "cluster.account is 0x1F, which YAML reads as 31"),
        ("run_dir: yes", "run_dir is yes, which YAML reads as True"),
    ],
)
def test_text_in_a_file_that_yaml_would_change_is_refused(refused, tmp_path, line, told):
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    path = tmp_path / "conf" / "recipe" / "mine.yaml"
    path.write_text(f"# @package _global_\n{line}\nepochs: 1_0\n")
    assert f"recipe/mine.yaml: {told}; write" in refused(
        "pretrain", "--config-dir=conf", "recipe=mine"
    )
    path.write_text('# @package _global_\nrun_dir: "2024_01_15"\nshards: [2024]\n')
    done = simclr("pretrain", "--config-dir=conf", "recipe=mine", "run_dir=r", cwd=tmp_path)
    assert "YAML" not in done.stderr


def test_a_recipe_without_its_first_line_is_told_which_line_that_is(refused, tmp_path):
    path = tmp_path / "conf" / "recipe" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("epochs: 2\n")
    told = refused("pretrain", "--config-dir=conf", "recipe=mine", "shards=[s]", "run_dir=r")
    assert "recipe/mine.yaml: " in told
    assert told.endswith("begin it with the line # @package _global_\n")


def test_a_flag_of_sbatch_is_a_truth_value_in_a_cluster_file(tmp_path):
    path = tmp_path / "cluster" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("extra: {exclusive: true, overcommit: false}\n")
    refuse_misread(path, schema_of(Pretrain))
    path.write_text("account: true\n")
    with pytest.raises(ValueError, match=r"cluster\.account is true, which YAML reads as True"):
        refuse_misread(path, schema_of(Pretrain))


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    script = f"{sys.executable} -m jobs.commands.pack --help | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_wrong_use_leaves_nothing_behind(refused, tmp_path):
    refused("pretrain", "recipe=laptop", "run_dir=r", "shards=[nowhere]")
    refused("pack", "source=eurosat", "source.root=nowhere", "output=o")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_came_from(tmp_path):
    done = simclr("pretrain", "debug=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("simclr-pretrain: run_dir is empty")


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ValueError("x is 1;\n give 2"), "x is 1; give 2", 2),
        (
            OSError(28, "No space left", "/a"),
            "/a: No space left; free space, and give the same command again",
            1,
        ),
        (
            NotADirectoryError(20, "Not a directory", "f/a"),
            "f/a: Not a directory; a part of the path is a file; give another path",
            1,
        ),
        (OSError(28, "No space"), "No space; free space, and give the same command again", 1),
        (
            OSError(116, "Stale file handle", "/nfs/a"),
            "/nfs/a: Stale file handle; the file server lost it; give the same command again",
            1,
        ),
        (OSError("cannot be read"), "cannot be read", 1),
        (KeyError("k"), "KeyError: 'k'; debug=true shows where", 1),
        (RuntimeError("c" * 5000), f"RuntimeError: {'c' * 600}; debug=true shows where", 1),
    ],
)
def test_any_exception_becomes_a_line_and_a_code(error, line, code):
    assert explain(error, COMMANDS["pack"]) == (line, code)


def test_an_interrupt_is_a_failure_in_one_line(capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert cli.guarded(COMMANDS["pack"], interrupted) == 1
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS.values())
def test_help_shows_examples_choices_defaults_output_and_exit_codes(command):
    page = help_page(command)
    assert len(command.examples) >= 3
    assert len(command.main_settings) <= 12
    for word in ("Examples:", "Choices:", "Output:", "Exit codes: 0", f"simclr-{command.name}: "):
        assert word in page
    for key in command.main_settings:
        default_of(key, schema_of(command))  # a KeyError for a setting that is gone


@pytest.mark.parametrize("command", COMMANDS.values())
def test_every_setting_is_described_by_the_docstring_of_its_dataclass(command):
    def described(kind, prefix=""):
        for entry in dataclasses.fields(kind):
            inner = typing.get_type_hints(kind)[entry.name]
            if dataclasses.is_dataclass(inner):
                described(inner, f"{prefix}{entry.name}.")
            else:
                assert description_of(f"{prefix}{entry.name}", schema_of(command))

    described(command.Config)


@pytest.mark.parametrize(
    ("command", "example"),
    [(command, text) for command in COMMANDS.values() for text in command.examples],
)
def test_examples_of_the_help_compose(command, example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*example.replace("\\\n", "").split(), "--cfg", "job"])
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["optim.nonsense=1"]])
def test_a_login_node_answers_quickly_and_without_torch(arguments, tmp_path):
    script = (
        "import sys\n"
        "from jobs.commands.pretrain import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    before = cpu_s_of_children()
    command = [sys.executable, "-c", script, *arguments]
    # without the measuring of coverage, which takes longer than the imports
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=plain, check=False
    )
    assert "AssertionError" not in done.stderr
    assert cpu_s_of_children() - before < 1.5  # not by the clock: the machine may be busy


def cpu_s_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    "kind", [*map(schema_of, COMMANDS.values()), *(source.config for source in SOURCES.values())]
)
def test_every_annotation_is_a_field_and_every_field_is_annotated(kind):
    # a name without annotation would silently be no setting
    plain = {
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and not callable(value) and not hasattr(value, "__get__")
    }
    assert plain <= {entry.name for entry in dataclasses.fields(kind)}


def test_the_groups_hold_what_the_documentation_names():
    assert set(SOURCES) <= set(choices()["source"])
    assert {"laptop", "paper", "recommended"} <= set(choices()["recipe"])
    assert {"here", "laptop", "slurm_example"} <= set(choices()["cluster"])
