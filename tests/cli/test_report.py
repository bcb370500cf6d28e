"""``cdm report``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_a_run_makes_a_page_with_its_previews(done: Run, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    assert str(out) in done("report", runs / "sr16", "--out", out).out
    page = out.read_text()
    assert "Run: sr16 (sr16)" in page
    assert page.count('class="sheet"') == 2


def test_a_cascade_is_sampled_for_its_page(done: Run, cascade: Path, tmp_path: Path) -> None:
    out = tmp_path / "cascade.html"
    done("report", cascade, "--out", out, "--per-class", "1", "--seed", "5", "--device", "cpu")
    page = out.read_text()
    assert "seed 5" in page
    assert page.count('class="pixels"') == 3 * 3  # classes and stages
    assert "Shoe" in page


def test_a_folder_of_both_is_one_page(done: Run, runs: Path, cascade: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "all" / "runs")
    shutil.copytree(cascade, tmp_path / "all" / "three")
    out = tmp_path / "all.html"
    done("report", tmp_path / "all", "--out", out, "--per-class", "0")
    page = out.read_text()
    assert page.count("<h2>") == 5  # a cascade, three runs, and these side by side
    assert 'class="pixels"' not in page


def test_an_older_page_is_replaced(done: Run, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")
    done("report", runs / "base8", "--out", out)
    assert "old" not in out.read_text()[:200]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "options, words",
    [
        (("--out", "page.txt"), "not the name of an .html file"),
        (("--out", "page.html", "--per-class", "-1"), "per-class"),
        (("--out", "page.html", "--scores", "no.json"), "no.json"),
        (("--out", "page.html", "--search", "nowhere"), "search.json"),
        (("--out", "page.html", "--data", "nowhere"), "nowhere"),
        (("--out", "page.html", "--device", "abacus"), "abacus"),
    ],
)
def test_what_a_person_gets_wrong_is_one_line(
    refused: Callable[..., str], here: Path, cascade: Path, options: tuple[str, ...], words: str
) -> None:
    assert words in refused("report", cascade, *options)
    assert not (here / "page.html").exists()


def test_damaged_parts_are_named(refused: Callable[..., str], here: Path, runs: Path, broken: Path) -> None:
    (broken / "base8" / "model.safetensors").write_bytes(b"x")
    assert "base8/model.safetensors" in refused("report", broken, "--out", "a.html")
    (here / "scores.json").write_text('{"scores": {}')
    assert "scores.json" in refused("report", runs, "--out", "a.html", "--scores", "scores.json")
    assert "'nowhere'" in refused("report", "nowhere", "--out", "a.html")
    (here / "empty").mkdir()
    assert "3 folders deep" in refused("report", "empty", "--out", "a.html")
