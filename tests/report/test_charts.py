"""Charts as SVG inside a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from cascaded_diffusion.report.charts import Line, line_chart, shades, short_number


def _chart(*lines: Line, **changes: object) -> str:
    options = {"description": "d", "x_label": "images seen", "y_label": "loss"}
    return line_chart(list(lines), **{**options, **changes})  # type: ignore[arg-type]


def _points(svg: str, colour: str) -> list[tuple[float, float]]:
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke: ' + colour, svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_a_line_goes_where_the_numbers_go() -> None:
    points = _points(_chart(Line("a", [0, 100, 200], [1.0, 0.5, 2.0]), colours=["#123456"]), "#123456")
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs)
    assert ys[2] < ys[0] < ys[1]  # y grows downwards in an SVG


def test_missing_and_undrawable_values_are_left_out() -> None:
    line = Line("a", [0, 1, 2, 3], [1.0, None, 0.0, 4.0])
    assert len(_points(_chart(line, colours=["#123456"]), "#123456")) == 3
    assert len(_points(_chart(line, colours=["#123456"], log_y=True), "#123456")) == 2
    assert "Nothing to draw" in _chart(Line("a", [0], [None]))


def test_it_fetches_nothing_takes_the_colours_of_the_page_and_is_well_formed() -> None:
    svg = _chart(Line("a <b>", [0, 1], [1, 2], [0.1, 0.2]), Line("$x^2$", [0, 1], [2, 1]), description='say "x"')
    assert "http" not in svg
    assert "#010203" not in svg
    assert "currentColor" in svg
    assert "a &lt;b&gt;" in svg
    assert "$x^2$" in svg
    assert ET.fromstring(svg).get("aria-label") == 'say "x"'


def test_charts_on_one_page_share_no_identifier_and_are_the_same_when_made_again() -> None:
    first, second = Line("a", [0, 1], [1, 2], [0.1, 0.2]), Line("a", [0, 1], [1, 3], [0.1, 0.2])
    names = [set(re.findall(r' id="([^"]*)"', _chart(line))) for line in (first, second)]
    assert names[0]
    assert not names[0] & names[1]
    assert _chart(first) == _chart(first)


def test_the_best_point_is_ringed() -> None:
    line = Line("a", [0, 1], [1, 2])
    assert _chart(line, best=(0, 1)).count("<use") > _chart(line).count("<use")


def test_numbers_on_axes_are_short() -> None:
    shown = [short_number(value) for value in (0, 0.25, 1500, 20_000, 1_250_000, 3e9, -50_000)]
    assert shown == ["0", "0.25", "1500", "20k", "1.25M", "3G", "-50k"]


def test_a_narrow_logarithmic_axis_still_has_ticks() -> None:
    svg = _chart(Line("a", [0, 1], [0.41, 0.47]), log_y=True)
    ticks = [float(text) for text in re.findall(r">(0\.4\d*)<", svg)]
    assert len(set(ticks)) >= 4


@pytest.mark.parametrize("values", [[0.0231, 0.02345], [1.001, 1.002], [0.5, 0.5000001]])
def test_values_that_hardly_differ_have_ticks_too(values: list[float]) -> None:
    """A loss on a plateau: no number of two digits lies on the axis."""
    svg = _chart(Line("a", [0, 1], values), log_y=True)
    assert svg.count(">0.0") + svg.count(">1<") + svg.count(">1.0") + svg.count(">0.5<") >= 2


def test_shades_differ() -> None:
    assert len(set(shades(8))) == 8
    assert all(re.fullmatch("#[0-9a-f]{6}", shade) for shade in shades(8))
