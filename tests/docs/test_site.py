"""The site builds without a warning, and a browser that opens it asks no other host for anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import cascaded_diffusion

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stderr
    return folder


class _Loads(HTMLParser):
    """Collects what a page makes a browser load: not where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in ("src", "srcset", "data", "poster") or (name == "href" and tag in ("link", "use", "image"))
            if loads or (name == "style" and "url(" in (value or "")):
                self.found.append(value or "")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loads = _Loads()
        loads.feed(text)
        assert any("assets/" in found for found in loads.found), page
        outward = [found for found in loads.found if re.search(r"(?:https?:)?//", found)]
        assert outward == [], page
        assert 'class="mermaid"' not in text  # which the theme would fetch a script for


def test_no_style_sheet_loads_anything_from_elsewhere(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_page_is_in_the_navigation_and_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= found
    assert {"reference/commands.html", "contributing.html", "changelog.html"} <= found
    text = " ".join(entry["title"] + entry["text"] for entry in index["docs"])
    for word in ("class_dropout", "train-classifier", *cascaded_diffusion.__all__):
        assert word.strip("_") in text


def test_docstrings_leave_no_markup_of_another_language(site: Path) -> None:
    for page in (site / "reference" / "python").glob("*.html"):
        assert not re.search(r":(?:class|meth|func|math|mod):", page.read_text(encoding="utf-8")), page


def test_the_navigation_names_every_page_that_is_written() -> None:
    def pages(entry: object) -> set[str]:
        if isinstance(entry, dict):
            return pages(list(entry.values()))
        return set().union(*map(pages, entry)) if isinstance(entry, list) else {str(entry)}

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written <= pages(navigation)
