"""A whole page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.report.write import ReportRequest, write_report

_VOID = {"meta", "img", "br"}
_IMPLIED = {"html"}


class _Checker(HTMLParser):
    """Complains about elements that are closed in another order than they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.identifiers: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" and value:
                self.identifiers.append(value)
            if key in ("src", "href") and not (value or "").startswith(("#", "data:image/png;base64,")):
                self.fetched.append(value or "")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def folder(tmp_path: Path, tiny_cascade_folder: Path, tiny_runs: Mapping[str, Path]) -> Path:
    """A folder with a cascade and two runs."""
    top = tmp_path / "work <1>"
    shutil.copytree(tiny_cascade_folder, top / "cascade")
    for name, run in tiny_runs.items():
        shutil.copytree(run, top / "runs" / name)
    return top


def test_a_folder_is_one_page_that_fetches_nothing(folder: Path, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    out = write_report(
        ReportRequest(str(folder), per_class=1), tmp_path / "new" / "page.html", watch=lambda *now: said.append(now)
    )
    page = out.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Cascade: cascade",
        "Runs side by side",
        "Run: runs/base8 (base8)",
        "Run: runs/sr16 (sr16)",
    ]
    assert "<title>Report: work &lt;1&gt;</title>" in page
    assert "cdm evaluate" in page  # no scores yet
    assert "cdm search" in page
    checker = _Checker()
    checker.feed(page)
    assert set(checker.open) <= _IMPLIED
    assert not checker.fetched
    assert len(set(checker.identifiers)) == len(checker.identifiers)
    assert "<script" not in page
    assert "http" not in page
    assert said[-1] == ("samples of cascade", 4, 4)


def test_the_same_request_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    request = ReportRequest(str(folder), per_class=1)
    pages = [write_report(request, tmp_path / name).read_text() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_data_without_a_default_extractor_is_a_sentence_not_an_error(
    folder: Path, tmp_path: Path, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: object) -> str:
        raise UserError("features: no default")

    monkeypatch.setattr("cascaded_diffusion.evaluation.features.default_extractor", none)
    request = ReportRequest(str(folder), data=colour_folder, per_class=1)
    assert "Not searched: features: no default." in write_report(request, tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"per_class": 0}, "--per-class 0"),
        ({"features": "nonsense"}, "nonsense"),
        ({"data": "grey"}, "1 image channels"),
        ({"data": "missing"}, "no such folder"),
        ({"target": "runs"}, "has none"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_sampled(
    folder: Path,
    tmp_path: Path,
    colour_folder: Path,
    grey_folder: Path,
    changes: dict[str, object],
    words: str,
) -> None:
    places = {"grey": grey_folder, "missing": tmp_path / "nowhere"}
    target = folder / str(changes.get("target", ""))
    request = ReportRequest(
        str(target),
        data=places.get(str(changes.get("data")), colour_folder),
        features=None if "features" not in changes else str(changes["features"]),
        per_class=int(str(changes.get("per_class", 1))),
    )
    said: list[object] = []
    with pytest.raises(UserError, match=words):
        write_report(request, tmp_path / "a.html", watch=lambda *now: said.append(now))
    assert not said
    assert not (tmp_path / "a.html").exists()
