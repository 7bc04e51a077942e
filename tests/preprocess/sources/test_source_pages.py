"""The pages on sources: their code runs, their example packs, their numbers are the data's."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from jobs.cli.schema import choices, register
from jobs.commands.pack import Pack
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.plan import read_quarantine
from preprocess.shards import open_readers, read_manifest
from preprocess.sources import SOURCES, Kind

DOCS = Path(__file__).resolve().parents[3] / "docs"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page, language):
    return [code for name, code in BLOCK.findall((DOCS / page).read_text()) if name == language]


@pytest.fixture
def example(monkeypatch):
    """The settings class of the example, with its source registered as the page says."""
    module = ModuleType("preprocess.sources.npz")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look there
    source, entry = blocks("adding-a-source.md", "python")
    exec(source, module.__dict__)
    added = eval(f"{{{entry}}}", {"Kind": Kind}, module.__dict__)
    for kind, classes in added.items():
        monkeypatch.setitem(SOURCES, kind, classes)
    return module.NpzConfig


def write(root, name, *, size_px=12):
    root.mkdir(exist_ok=True)
    random = np.random.default_rng(len(name))
    arrays = {b: random.integers(1, 9000, (size_px, size_px), np.uint16) for b in ("B02", "B03")}
    np.savez(root / f"{name}.npz", **arrays)
    return arrays


def test_the_example_source_packs_to_the_bit_and_sets_bad_files_aside(example, tmp_path):
    root, output = tmp_path / "npz", tmp_path / "shards"
    written = {name: write(root, name) for name in ("a", "bb")}
    write(root, "small", size_px=6)
    (root / "torn.npz").write_bytes(b"PK")
    source = example(root=str(root), bands=["B3", "B2"], size_px=12)
    pack(PackConfig(source=source, output=str(output), max_rejected=0.5), progress=False)
    (reader,) = open_readers(output, read_manifest(output))
    assert reader.index("id").tolist() == list(written)
    for row, arrays in enumerate(written.values()):
        wanted = np.stack([arrays["B03"], arrays["B02"]])
        assert np.array_equal(reader.read(row)["b10"], wanted)
    rejected = {entry.id: entry.reason for entry in read_quarantine(output / "rejected.jsonl")}
    assert rejected["small"] == "holds (2, 6, 6) uint16, wanted (2, 12, 12)"
    assert rejected["torn"].startswith("cannot be read")


def test_the_example_refuses_what_the_page_says(example, tmp_path):
    with pytest.raises(ValueError, match=r"source\.bands is empty"):
        example(root=str(tmp_path))
    config = PackConfig(
        source=example(root=str(tmp_path), bands=["B2"]), output=str(tmp_path / "s")
    )
    with pytest.raises(ValueError, match="no archive in"):
        pack(config, progress=False)


def test_the_entry_is_all_that_the_command_line_needs(example, tmp_path):
    (values,) = blocks("adding-a-source.md", "yaml")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "fields.yaml").write_text(values)
    register(Pack)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    with initialize_config_module("jobs.conf", version_base=None):
        for chosen in ("source=npz", "source=fields"):
            config = compose("pack", [chosen, "source.bands=[B02]", "source.size_px=12", search])
            source = OmegaConf.to_object(config.source)
            assert isinstance(source, example)
            assert (source.kind, source.size_px) == ("npz", 12)
    assert source.name == "fields"
    assert "npz" in choices()["source"]


def test_the_list_of_patches_held_out_names_them_as_v1_does(real_data, tmp_path, monkeypatch):
    (tmp_path / "metadata.parquet").symlink_to(real_data / "bigearthnet_v2" / "metadata.parquet")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("getting-data.md", "python")
    exec(code, {})
    names = (tmp_path / "held-out.csv").read_text().splitlines()
    # validation and test of the official table
    assert len(names) == len(set(names)) == 122_342 + 119_825
    assert all(re.fullmatch(r"S2[AB]_MSIL2A_\d{8}T\d{5,6}_\d{1,2}_\d{1,2}", name) for name in names)
