"""What ``make docs`` adds: start page, settings from the dataclasses, tables of benchmarks.

mkdocs calls the ``on_`` functions. Nothing that is generated here is kept in the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from jobs import commands
from jobs.cli import schema as pages
from preprocess.sources import SOURCES

ROOT = Path(__file__).resolve().parents[1]
# files outside docs/ that pages link to, and what they are called on the site
_OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
_OUTSIDE |= {"CHANGELOG.md": "changelog.md", "LICENSE": "licence.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    generated = {
        name: (ROOT / source).read_text(encoding="utf-8") for source, name in _OUTSIDE.items()
    }
    generated["licence.md"] = f"# Licence\n\n{generated['licence.md']}"
    generated["reference-settings.md"] = all_settings()
    for table in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        generated[f"benchmarks/{table.name}"] = table.read_text(encoding="utf-8")
    for name, text in generated.items():
        files.append(File.generated(config, name, content=_relinked(text, name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to files outside of docs/ to their pages."""
    return _relinked(markdown, "")


def _relinked(text: str, name: str) -> str:
    text = re.sub(r"\]\((?:\.\./)?benchmarks/results/([\w-]+\.md)\)", r"](benchmarks/\1)", text)
    for source, page in _OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}((?:#[\w-]+)?)\)", rf"]({page}\1)", text)
    text = text.replace("](docs/", "](")
    if name.startswith("benchmarks/"):
        text = re.sub(r"\]\((?:\.\./)+docs/", "](../", text)
    return text


def all_settings() -> str:
    """Return the page of every command's settings, with defaults and meaning."""
    parts = ["# All settings", "Generated from the dataclasses; `--cfg job` prints them composed."]
    for name in commands.WITH_SETTINGS:
        command = commands.load(name)
        examples = "\n".join(command.examples)
        parts += [f"## simclr-{name}", pages.paragraphs(command)[0], f"```\n{examples}\n```"]
        parts += _tables(command.Config, "")
    parts += ["## cluster, for every command"]
    from jobs.config import ClusterConfig

    parts += _tables(ClusterConfig, "cluster.")
    for name, kind in SOURCES.items():
        parts += [f"## source={name}", pages.paragraphs(kind.config)[0]]
        parts += _tables(kind.config, "source.")
    return "\n\n".join(parts) + "\n"


def _tables(schema: type[Any], prefix: str) -> list[str]:
    rows, inner = [], []
    for name, kind in get_type_hints(schema).items():
        if hasattr(kind, "__dataclass_fields__") and name != "source":
            inner += _tables(kind, f"{prefix}{name}.")
        elif name not in ("source", "kind"):
            rows.append(_row(name, schema, prefix))
    head = ["| setting | default | meaning |", "|---|---|---|"]
    return ["\n".join([*head, *rows]), *inner] if rows else inner


def _row(name: str, schema: type[Any], prefix: str) -> str:
    default = pages.default_of(name, schema)
    shown = "" if default in ("", [], {}) else f"`{getattr(default, 'name', default)}`"
    kind = pages.type_of(name, schema)
    text = pages.description_of(name, schema).replace("|", "\\|").replace("<", "&lt;")
    members = getattr(kind, "__members__", {})
    if members and not all(member in text for member in members):
        text += f" One of {', '.join(members)}."
    return f"| `{prefix}{name}` | {shown} | {text} |"
