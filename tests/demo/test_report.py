"""The demo's page: pictures inside it, curves that show what was logged."""

from __future__ import annotations

import re

from PIL import Image

from cascaded_diffusion.demo.report import image_tag, loss_curves, render


def test_a_picture_is_inside_the_page_and_its_description_cannot_break_out() -> None:
    tag = image_tag(Image.new("L", (2, 2)), 'a "quoted" <b>')
    assert tag.startswith('<img alt="a &quot;quoted&quot; &lt;b&gt;" src="data:image/png;base64,')


def test_curves_have_one_line_a_stage_falling_where_the_loss_falls() -> None:
    rows = [{"images": 100, "loss": 1.0}, {"images": 200, "loss": 0.1}]
    svg = loss_curves({"base8": rows, "sr32": rows[:1]})
    lines = re.findall(r'points="([^"]*)"', svg)
    assert len(lines) == 2
    (x0, y0), (x1, y1) = ([float(v) for v in point.split(",")] for point in lines[0].split())
    assert x1 > x0
    assert y1 > y0  # y grows downwards in an SVG
    assert "base8" in svg
    assert "200 images" in svg


def test_nothing_logged_is_said() -> None:
    assert "No loss" in loss_curves({"base8": []})


def test_every_place_of_the_page_is_filled() -> None:
    names = ["facts", "chain", "settings", "grid", "stages", "strips", "s_effect", "trained", "curves", "tiny"]
    page = render({name: f"[{name}]" for name in names})
    assert all(f"[{name}]" in page for name in names)
    assert "$" not in page
    assert "http" not in page  # nothing is fetched when it is opened
