"""simclr and its doors into preprocess import without a scheduler, hydra or rasterio."""

import subprocess
import sys

from conftest import REPOSITORY

ALLOWED = {"torch", "torchvision", "numpy", "scipy", "h5py", "safetensors", "tqdm"}

# What these import themselves is theirs to choose: only imports from our modules are judged.
SCRIPT = """
import builtins, pathlib, sys
allowed, root = set(sys.argv[1].split(",")), pathlib.Path(sys.argv[2])
real = builtins.__import__
refused = []

def guard(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "").split(".")[0]
    top = name.split(".")[0]
    ours = top in ("simclr", "preprocess", "jobs")
    if importer in ("simclr", "preprocess") and level == 0 and not ours:
        if top not in allowed and top not in sys.stdlib_module_names:
            refused.append(f"{globals['__name__']} imports {name}")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guard
files = [*root.glob("simclr/**/*.py"), *root.glob("preprocess/shards/*.py")]
for path in [*files, root / "preprocess" / "bands.py"]:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    real(name)
foreign = {"hydra", "omegaconf", "submitit", "rasterio", "rich"} & set(sys.modules)
print(len(files), sorted(refused), sorted(foreign))
"""


def test_every_simclr_module_imports_with_its_own_libraries_alone():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(ALLOWED), str(REPOSITORY)],
        capture_output=True, text=True, timeout=600, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    count, rest = done.stdout.strip().split(" ", 1)
    assert int(count) > 40
    assert rest == "[] []"


def test_a_rank_imports_nothing_that_only_the_command_line_needs():
    # ranks that share the cores of a node wait for each of these
    script = "import sys, jobs.commands.pretrain, simclr.train; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"hydra", "rasterio", "scipy", "matplotlib", "rich", "sklearn"}
