"""The figures in the repository are those that the script draws, small enough, and drawn the same every time."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs_site.figures import FIGURES, Material

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "images" / "method"
LARGEST = 150_000
_EMBEDDED = re.compile(r'data:image/png;base64,\s*([^"]+)"')
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture(scope="module")
def material() -> Material:
    return Material()


def test_the_folder_holds_the_figures_and_nothing_else() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(FIGURES)
    assert [path.name for path in FOLDER.iterdir() if path.stat().st_size > LARGEST] == []


def test_every_figure_is_shown_with_a_description() -> None:
    shown = re.findall(r"!\[([^\]]+)\]\(images/method/([\w.-]+)\)", (DOCS / "method.md").read_text())
    assert {name for _, name in shown} == set(FIGURES)
    assert all(len(words) > 20 for words, _ in shown)


@pytest.mark.parametrize("name", ["blur.svg", "schedules.svg"])
def test_drawn_twice_a_figure_is_the_same(material: Material, name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        FIGURES[name](material).save(tmp_path / folder / name)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def _assert_same_pixels(one: bytes, other: bytes) -> None:
    """Equal but for what sampling on another processor may change."""
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16) for data in (one, other))
    assert a.shape == b.shape
    assert (np.abs(a - b).max(axis=2) > 16).mean() < 0.002


def _assert_same_drawing(one: str, other: str) -> None:
    for ours, theirs in zip(_EMBEDDED.findall(one), _EMBEDDED.findall(other), strict=True):
        _assert_same_pixels(base64.b64decode(ours), base64.b64decode(theirs))
    # Identifiers are hashes of what they name.
    lines = [re.sub(r'(id="|#)[A-Za-z][\w-]*', "", _EMBEDDED.sub("", text)) for text in (one, other)]
    assert _NUMBER.sub("0", lines[0]) == _NUMBER.sub("0", lines[1])
    numbers = [np.array([float(word) for word in _NUMBER.findall(line)]) for line in lines]
    np.testing.assert_allclose(numbers[0], numbers[1], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_the_script_draws_today(material: Material, name: str, tmp_path: Path) -> None:
    FIGURES[name](material).save(tmp_path / name)
    if name.endswith(".png"):
        _assert_same_pixels((tmp_path / name).read_bytes(), (FOLDER / name).read_bytes())
    else:
        _assert_same_drawing((tmp_path / name).read_text(), (FOLDER / name).read_text())
