"""Line charts as SVG inside the page, in its colours, light or dark."""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cascaded_diffusion.report.markup import Html, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["Line", "chart_figure", "line_chart", "shades", "short_number"]

# Of middle lightness, so that they stand out from white and from black.
_COLOURS = ("#3f7fcf", "#d2702a", "#3f9a58", "#a85bb5", "#b0902a", "#c74f5f", "#2f9aa0", "#8a7a6a")
_INK = "#010203"
"""Stands for the page's text colour until the SVG is in the page."""
_SIZE = (6.0, 3.7)


class Line(NamedTuple):
    """One line of a chart; ``errors`` are half the length of its error bars. Points that are ``None`` are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    errors: Sequence[float | None] | None = None


def shades(count: int) -> list[str]:
    """Colours for an ordered series, from blue over violet to orange, all of one lightness."""
    steps = [i / max(count - 1, 1) for i in range(count)]
    rgb = [colorsys.hls_to_rgb((0.53 + 0.57 * step) % 1, 0.52, 0.58) for step in steps]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in rgb]


def short_number(value: float, position: object = None) -> str:
    """A few characters for a number on an axis, such as ``200k``; ``position`` is there for matplotlib."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def line_chart(
    lines: Sequence[Line],
    *,
    description: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    points: bool = False,
    best: tuple[float, float] | None = None,
    colours: Sequence[str] = _COLOURS,
    legend_title: str | None = None,
) -> Html:
    """Lines over a common axis, as an SVG element.

    Args:
        lines: what to draw.
        description: words for those who cannot see it; with the data it makes the identifiers, so no two charts of a
            page should share it.
        x_label, y_label: what the axes are.
        log_y: logarithmic scale; values must then be above 0, others are left out.
        points: draw a mark at every point.
        best: a point to ring.
        colours: one a line, in turn.
        legend_title: above the names of the lines.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The identifiers of one page's charts must differ, and be the same when it is made again.
    salt = hashlib.sha256(repr((lines, description, y_label)).encode()).hexdigest()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user has set for other charts
        matplotlib.rcParams.update(_style(salt))
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        drawn = [_draw(axes, line, colours[i % len(colours)], log_y, points) for i, line in enumerate(lines)]
        if not any(drawn):
            return tag("p", "Nothing to draw.")
        _finish(axes, x_label, y_label, log_y)
        if best is not None:
            _ring(axes, *best)
        if len(lines) > 1:
            _legend(figure, legend_title)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), description)


def _style(salt: str) -> Any:
    fixed = {
        "svg.fonttype": "none",  # text stays text, in the page's colour
        "svg.hashsalt": salt,
        "font.family": "DejaVu Sans",
        "font.size": 10.0,
        "text.parse_math": False,  # a name with $ in it is a name
    }
    keys = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color", "legend.labelcolor")
    return {**fixed, **dict.fromkeys(keys, _INK)}


def _draw(axes: Axes, line: Line, colour: str, log_y: bool, points: bool) -> bool:
    """Draw one line, and say whether there was anything to draw."""
    errors = line.errors if line.errors is not None else [None] * len(line.y)
    kept = [
        (x, y, e or 0.0)
        for x, y, e in zip(line.x, line.y, errors, strict=True)
        if y is not None and math.isfinite(y) and (y > 0 or not log_y)
    ]
    if not kept:
        return False
    x, y, e = zip(*kept, strict=True)
    marker = "o" if points or len(kept) == 1 else None
    axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=4.5, label=line.name.lstrip("_") or "-")
    if any(e):
        axes.errorbar(x, y, yerr=e, color=colour, linestyle="none", capsize=2.5, linewidth=1.0)
    return True


def _legend(figure: Figure, title: str | None) -> None:
    """The lines' names below the chart."""
    figure.legend(loc="outside lower center", ncols=4, frameon=False, title=title, fontsize=9, handlelength=1.2)


def _ring(axes: Axes, x: float, y: float) -> None:
    """Put a ring around a point."""
    axes.plot(x, y, "o", markersize=13, markeredgewidth=1.6, markerfacecolor="none", markeredgecolor=_INK)


def _finish(axes: Axes, x_label: str, y_label: str, log_y: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    _plain_numbers(axes.xaxis)
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        _log_ticks(axes.yaxis, low, high)
    _plain_numbers(axes.yaxis)


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    """A handful of round numbers, however few decades there are."""
    from matplotlib.ticker import FixedLocator, NullLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = (tuple(i / 10 for i in range(10, 100)), tuple(i / 100 for i in range(100, 1000)))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), *fine):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    ticks = ticks or [low, high]  # values so near each other that no round number lies between them
    axis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / 8)]))
    axis.set_minor_locator(NullLocator())


def _plain_numbers(axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(short_number))


def _inline(svg: str, description: str) -> Html:
    """A stand-alone SVG document as an element of the page: no prologue, no name spaces, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    # matplotlib names every group; names that recur from chart to chart would not be valid in one page.
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    box = re.search(r'viewBox="([^"]*)"', svg)
    svg = re.sub(r"^<svg[^>]*>", "", svg.strip())
    svg = svg.replace("xlink:href", "href").replace(_INK, "currentColor")
    opening = str(tag("svg", viewBox=box[1] if box else None, role="img", aria_label=description))
    return Html(opening.removesuffix("</svg>") + re.sub(r">\s+<", "><", svg).strip())


def chart_figure(chart: Html, caption: str) -> Html:
    """A chart with words below."""
    return tag("figure", chart, tag("figcaption", caption))
