"""The modules come in; ``docs/code-map.md``, the first sentence of each of them, goes out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "code-map.md"
FLOORS = {
    "preprocess": "Rasters to shards. Needs no torch.",
    "simclr": "Shards to an encoder. Knows nothing of Slurm, and needs torch, torchvision, numpy, "
    "h5py, safetensors and tqdm alone.",
    "jobs": "Where and when: commands, settings, Slurm, pictures.",
    "benchmarks": "One file a claim.",
}
_HEAD = """\
# Map of the code

Every module, and the sentence that it opens with. Imports go only downwards: `jobs` uses `simclr`,
`simclr` uses `preprocess.shards` and `preprocess.bands`; import-linter holds that. `tests/` mirrors
these folders. The page is made by `make map`.
"""


def code_map() -> str:
    """Return the page."""
    return _HEAD + "".join(_floor(name, words) for name, words in FLOORS.items())


def _floor(name: str, words: str) -> str:
    files = [path for path in sorted((ROOT / name).rglob("*.py")) if path.name != "__init__.py"]
    parts = [f"\n## {name}/\n\n{words}\n"]
    for folder in sorted({path.parent for path in files}):
        rows = "".join(f"| `{p.name}` | {sentence(p)} |\n" for p in files if p.parent == folder)
        shown = f"{folder.relative_to(ROOT)}/"
        parts.append(f"\n| `{shown}` | |\n|---|---|\n{rows}")
    return "".join(parts)


def sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, as Markdown in one line.

    Raises:
        ValueError: it has no docstring.
    """
    text = ast.get_docstring(ast.parse(path.read_text()))
    if text is None:
        raise ValueError(f"{path} opens without a sentence on what it does")
    paragraph = " ".join(text.partition("\n\n")[0].split())
    first = re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]
    return first.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(code_map())
