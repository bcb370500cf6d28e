"""Hooks of mkdocs: pages that are generated while the site is built, so that they cannot be out of date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs_site import commands, configuration, interface

__all__ = ["on_config", "on_files", "on_page_content"]

ROOT = Path(__file__).parents[1]
PROJECT_PAGES = {"Contributing": "CONTRIBUTING.md", "Changelog": "CHANGELOG.md", "Security": "SECURITY.md"}
"""Files beside the README that are pages too, as far as they are there."""


def _project_pages() -> dict[str, str]:
    return {title: name for title, name in PROJECT_PAGES.items() if (ROOT / name).is_file()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation: the rooms of the Python reference, and the project's own files."""
    for entry in config.nav or []:
        for title, inner in entry.items() if isinstance(entry, dict) else ():
            if title == "Reference":
                _find(inner, "Python").extend({room: f"reference/python/{room}.md"} for room in interface.rooms())
            if title == "Project":
                inner.extend({name: path.lower()} for name, path in _project_pages().items())
    return config


def _find(entries: list[Any], title: str) -> list[Any]:
    return next(entry[title] for entry in entries if isinstance(entry, dict) and title in entry)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/commands.md": commands.command_page(),
        "reference/recipes.md": configuration.recipe_page(),
        "reference/files.md": configuration.files_page(),
        "reference/python/index.md": interface.overview_page(),
    }
    pages |= {f"reference/python/{room}.md": interface.room_page(room) for room in interface.rooms()}
    pages |= {name.lower(): (ROOT / name).read_text(encoding="utf-8") for name in _project_pages().values()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text.replace("](docs/", "](")))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Mark short pieces of code, which assets/site.css keeps on one line."""
    return re.sub(r"<code>([^<]{1,32})</code>", r'<code class="short">\1</code>', html)
