"""The package as a stranger installs it: a wheel, far from the checkout, is all it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_pages import block_under, blocks, run_block

PACKAGES = ("hydra_plugins", "jobs", "preprocess", "simclr")
# what this interpreter knows of the checkout; a stranger's does not have it
OURS = re.compile(r"simclr_s2|__editable__", re.IGNORECASE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy: in the checkout, modules of older builds would come along."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, copy / package, ignore=kept)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    folder = copy.parent / "wheels"
    subprocess.run([*pip, "--wheel-dir", folder, copy], check=True, timeout=600)
    (built,) = folder.iterdir()
    return built


def files_of(package: Path) -> set[str]:
    return {
        str(path.relative_to(REPOSITORY))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def without_checkout(environment: Path) -> None:
    """Give an environment every library of this one, but not our packages."""
    libraries = Path(sysconfig.get_path("purelib"))
    places = {"base": str(environment), "platbase": str(environment)}
    target = Path(sysconfig.get_path("purelib", vars=places))
    for entry in libraries.iterdir():
        # hydra_plugins is shared: the launcher has a folder in it, and so have we
        if not (
            OURS.search(entry.name) or entry.suffix == ".pth" or (target / entry.name).exists()
        ):
            link_or_copy(entry, target / entry.name)


def link_or_copy(entry: Path, target: Path) -> None:
    if entry.name == "hydra_plugins":
        shutil.copytree(entry, target, symlinks=True)
    else:
        target.symlink_to(entry)


def test_every_file_of_the_packages_is_in_the_wheel_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name for package in PACKAGES for name in files_of(REPOSITORY / package)}
    assert held == wanted
    assert {Path(name).suffix for name in held} == {".py", ".yaml", ".sbatch", ".csv"}


@pytest.fixture
def stranger(wheel, tmp_path):
    """Return a function that runs shell lines in an empty folder where only the wheel is known."""
    environment, folder = tmp_path / "environment", tmp_path / "an empty folder"
    folder.mkdir()
    venv.create(environment, with_pip=False)
    without_checkout(environment)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, timeout=600)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return run_block(code, folder, python)

    done = run("python -c 'import jobs, hydra_plugins.simclr_s2_launcher; print(jobs.__file__)'")
    assert done.stdout.startswith(str(environment)), done.stdout + done.stderr
    return run, folder


@pytest.mark.slow
def test_the_tour_leads_a_stranger_from_nothing_to_an_encoder(stranger):
    run, folder = stranger
    done = run(block_under("Five minutes on a laptop"))
    assert done.returncode == 0, done.stderr
    assert "every checksum, statistics and label counts: sound" in done.stdout
    assert (folder / "runs/first/curves.png").exists()
    assert (folder / "encoders/first/encoder.safetensors").exists()
    # what the pages show of the package without its commands, on what the tour has left
    for page in ("README.md", "docs/fine-tuning.md"):
        *_, code = blocks(REPOSITORY / page, "python")
        done = run(f"python - <<'END'\n{code}\nEND\n")
        assert done.returncode == 0, done.stderr
