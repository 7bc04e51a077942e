"""Pages for people: their links lead somewhere and their commands are understood."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from jobs import commands as registry
from jobs.cli.schema import register, to_settings
from preprocess.shards.atomic_io import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
Compose = Callable[[str, list[str]], object]
ids = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of a page; variables stand for some folder."""
    for code in blocks(page, "bash"):
        for line in re.sub(r"\\\n\s*", "", code).splitlines():
            words = shlex.split(re.sub(r"\$\{?\w+\}?", "/somewhere", line), comments=True)
            if words:
                yield words


def block_under(heading: str) -> str:
    """Return the first bash block of the README below a heading."""
    _, found, rest = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")
    assert found, f"the README has no heading {heading!r}"
    return next(code for language, code in BLOCK.findall(rest) if language == "bash")


@pytest.fixture
def composed(tmp_path):
    """Compose settings as a user's command does, beside files of the user's own."""
    for name in registry.WITH_SETTINGS:
        register(registry.load(name))
    example = (ROOT / "jobs/conf/cluster/slurm_example.yaml").read_text()
    write_text(tmp_path / "cluster" / "mine.yaml", example)
    # as a study leaves it
    text = "# @package _global_\naugment: {preset: couplets, couplets: [blur+gain]}\n"
    write_text(tmp_path / "recipe" / "allowed.yaml", text)
    path = f"hydra.searchpath=['file://{tmp_path}']"
    with initialize_config_module("jobs.conf", version_base="1.3"):
        yield lambda verb, settings: to_settings(compose(verb, [*settings, path]))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_is_understood(page, composed):
    for words in commands(page):
        verb = words[0].removeprefix("simclr-")
        if words[0] == "make":
            check_target(words)
        elif words[0].startswith("simclr-") and verb in registry.WITH_SETTINGS:
            check_settings(verb, words[1:], composed)
        elif words[0] == "simclr-chain":
            check_chain(words[1:], composed)
        elif words[0].startswith("simclr-"):
            assert (Path(sys.executable).parent / words[0]).exists(), words


def check_target(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words[1:] if "=" not in word} <= set(targets), words


def check_settings(verb: str, arguments: list[str], composed: Compose) -> None:
    settings = [word for word in arguments if "=" in word and not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(settings)
    single = [
        f"{each.key_or_group}={next(each.sweep_string_iterator())}"
        if each.is_sweep_override()
        else text
        for each, text in zip(parsed, settings, strict=True)
    ]
    assert single == settings or "-m" in arguments, f"commas without -m: {settings}"
    composed(verb, single)


def check_chain(arguments: list[str], composed: Compose) -> None:
    stages = [word for word in arguments if word in registry.WITH_SETTINGS]
    assert stages, arguments
    first = arguments.index(stages[0])
    place = [word for word in arguments[:first] if not word.startswith("-")]
    for stage in stages:
        begin = arguments.index(stage) + 1
        end = next(
            (n for n in range(begin, len(arguments)) if arguments[n] in stages),
            None,
        )
        composed(stage, [*place, *arguments[begin:end]])


def run_block(
    code: str, folder: Path, python: Path = Path(sys.executable), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a block as a person would who typed it line by line, and stop at the first failure."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={**known, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
