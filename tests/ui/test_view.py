"""What the page says and shows of a run."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.ui import view
from cascaded_diffusion.ui.limits import PageLimits
from cascaded_diffusion.ui.worker import Snapshot, StageProgress

Limits = Callable[[Path | str], PageLimits]
GREY = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
BASE = StageProgress("base16", 5, 12, GREY, 2, 1.25)
HIGH = StageProgress("sr32", 0, 6, None, 0, 0.0)
RUNNING = Snapshot("running", (BASE, HIGH), "base16", 1.3, 4.2, ())


def text(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", html)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"state": "waiting"}, "waiting for the run before it"),
        ({"running": None}, "starting"),
        ({}, "base16, step 5 of 12; about 4.2 s left"),
        ({"left": 3725}, "about 1 h 02 min left"),
        ({"left": 125}, "about 2 min 05 s left"),
        ({"left": 42.4}, "about 42 s left"),
        ({"unmeasured": ("sr32",)}, "about 4.2 s left, and then sr32"),
        ({"unmeasured": ("base16", "sr32")}, "base16, step 5 of 12 "),
        ({"state": "done"}, "done in 1.3 s (base16 1.2 s, sr32 0.0 s)"),
        ({"state": "stopped"}, "stopped in base16, after step 5 of 12, after 1.3 s"),
        ({"state": "stopped", "running": None}, "stopped before it began"),
    ],
)
def test_the_status_line(changes: dict[str, object], words: str) -> None:
    said = view.status(replace(RUNNING, **changes))  # type: ignore[arg-type]
    assert words in text(said)
    assert 'role="status"' in said


def test_the_bar_is_the_share_of_steps() -> None:
    assert "width:27.8%" in view.status(RUNNING)
    assert "width:100.0%" in view.status(replace(RUNNING, state="done"))


def test_every_stage_is_shown_with_its_images(limits_of: Limits) -> None:
    html = view.panels(RUNNING, limits_of("demo"), [8, 0])
    assert html.count("<section") == 2
    assert html.count("<img") == 2
    assert html.count("cdm-blank") == 2
    assert html.count("Bag</figcaption>") == 2
    assert "step 5 of 12" in html
    source = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert source is not None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(source[1])))), GREY[0, ..., 0])


def test_large_images_are_sent_small(limits_of: Limits, plain: Path) -> None:
    limits = limits_of(plain)
    large = StageProgress("sr16", 1, 4, np.zeros((1, 512, 512, 3), np.uint8), 1, 1.0)
    html = view.panels(Snapshot("running", (large,), "sr16", 1, 1, ()), limits, [-1])
    source = re.search(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert source is not None
    assert Image.open(io.BytesIO(base64.b64decode(source[1]))).size == (160, 160)


def test_many_images_are_counted_not_shown(limits_of: Limits) -> None:
    many = StageProgress("base16", 5, 12, np.zeros((60, 16, 16, 1), np.uint8), 60, 1.0)
    html = view.panels(Snapshot("running", (many,), "base16", 1, 1, ()), limits_of("demo"), [0] * 60)
    assert html.count("<img") == 36
    assert "and 24 more" in html


def test_names_cannot_break_the_page(limits_of: Limits) -> None:
    limits = replace(limits_of("demo"), class_names=("<script>alert(1)</script>",) * 10)
    for html in (
        view.panels(RUNNING, limits, [0, 1]),
        view.complaint("<script>"),
        view.headline("<script>", limits, 1),
        view.link('?"><script>'),
    ):
        assert "<script" not in html
