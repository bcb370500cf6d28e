from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import SamplingConfig

Configure = Callable[..., Any]


class Cells(HTMLParser):
    """The text of every cell, row by row; fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.headline = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("div", "strong", "table", "thead", "tbody", "tr", "th", "td")
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "strong":
            self.headline += data
        else:
            self.rows[-1][-1] += data


@pytest.fixture
def cascade(base_config: Configure, sr_config: Configure, random_stage: Callable[..., Any]) -> Cascade:
    """8 -> 16 -> 32 with noise and then blur, guided, with defaults of its own."""
    names = {"class_names": ["Bag", "<b>&", "two\nlines", "c"]}
    base = base_config(8, network={"attention": [8], "multipliers": [1, 2]}, **names)
    noisy = sr_config(16, low=8, **names)
    blurred = sr_config(32, low=16, conditioning={"augmentation": "blur"}, network={"blocks": [2]}, **names)
    return Cascade(
        [random_stage(config) for config in (base, noisy, blurred)],
        defaults={"sr16": SamplingConfig(sampler="heun", steps=7, augmentation="truncated", s=0.25, guidance=1.5)},
    )


def test_text(cascade: Cascade) -> None:
    text = repr(cascade)
    assert text.splitlines()[0] == "Cascade 8 -> 16 -> 32 pixels, 4 classes (Bag, <b>&, two lines, c), on cpu"
    base, noisy, blurred = re.split(r"\n  (?=\w)", text)[1:]
    assert "makes:      8x8x3" in base
    assert "from:       noise" in base
    assert "network:    32, 64 channels; 1 block; attention at 8" in base
    assert "diffusion:  cosine T=40, predicts v" in base
    assert "sampler:    ddim, 4 steps" in base
    assert "guidance:   none" in base
    assert "from:       8x8, truncated s = 0.25 of at most 0.5" in noisy
    assert "sampler:    heun, 7 steps" in noisy
    assert "guidance:   1.5" in noisy
    assert "network:    32 channels; 1 block; patches of 2x2" in noisy
    assert "from:       16x16, trained with blur" in blurred
    assert "2 blocks" in blurred
    count = sum(parameter.numel() for parameter in cascade.stages["base8"].network.parameters())
    assert f"parameters: {count / 1e6:.2f} M" in base
    assert f"size:       {4 * count / 1e6:.1f} MB" in base


def test_html_says_the_same_and_escapes_names(cascade: Cascade) -> None:
    found = Cells(cascade._repr_html_())
    assert found.headline == repr(cascade).splitlines()[0]
    head, *rows = found.rows
    assert head == ["stage", "makes", "from", "parameters", "size", "network", "diffusion", "sampler", "guidance"]
    assert [row[0] for row in rows] == ["base8", "sr16", "sr32"]
    for row in rows:
        for value in row[1:]:
            assert f" {value}\n" in f"{cascade!r}\n"


def test_settings_that_change_are_told(tiny_cascade: Cascade) -> None:
    before = repr(tiny_cascade)
    tiny_cascade.defaults["sr16"] = tiny_cascade.defaults["sr16"].model_copy(update={"augmentation": "none", "s": 0.0})
    assert "nontruncated s = 0.1" in before
    assert "16x16x3\n    from:       8x8, s = 0 of at most 0.5" in repr(tiny_cascade)


def test_without_classes(base_config: Configure, random_stage: Callable[..., Any]) -> None:
    cascade = Cascade([random_stage(base_config(8, classes=None))])
    assert repr(cascade).startswith("Cascade 8 pixels, no classes, on cpu\n  base8\n")


def test_a_thousand_classes_stay_one_line(base_config: Configure, random_stage: Callable[..., Any]) -> None:
    names = [f"class {i}" for i in range(1000)]
    line = repr(Cascade([random_stage(base_config(8, classes=1000, class_names=names))])).splitlines()[0]
    assert "1000 classes (class 0, " in line
    assert line.endswith("class 11, ...), on cpu")
