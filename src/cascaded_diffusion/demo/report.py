"""The demo's report: one HTML file that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from cascaded_diffusion.report.markup import image_tag

__all__ = ["image_tag", "loss_curves", "render"]

_COLOURS = ("#1f5fa8", "#b3541e", "#3d7a3d", "#7a3d7a")


def loss_curves(curves: Mapping[str, Sequence[dict[str, Any]]], *, width: int = 640, height: int = 240) -> str:
    """Loss over images seen, on a logarithmic scale, one line a stage: an SVG."""
    points = {name: [(row["images"], row["loss"]) for row in rows if row["loss"]] for name, rows in curves.items()}
    flat = [point for line in points.values() for point in line]
    if not flat:
        return "<p>No loss was logged.</p>"
    right = max(x for x, _ in flat)
    low, high = math.log10(min(y for _, y in flat)), math.log10(max(y for _, y in flat))
    span = max(high - low, 1e-6)
    left, bottom = 52, height - 28

    def place(x: float, y: float) -> str:
        return f"{left + (width - left - 90) * x / right:.1f},{8 + (bottom - 8) * (high - math.log10(y)) / span:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Loss over images seen">']
    parts.append(f'<path class="axis" d="M{left},8 V{bottom} H{width - 90}"/>')
    for value in (10**low, 10 ** ((low + high) / 2), 10**high):
        y = place(0, value).split(",")[1]
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" dominant-baseline="middle">{value:.2g}</text>')
    parts.append(f'<text x="{width - 90}" y="{height - 8}" text-anchor="end">{right:,} images</text>')
    for (name, line), colour in zip(points.items(), _COLOURS, strict=False):
        parts.append(f'<polyline stroke="{colour}" points="{" ".join(place(x, y) for x, y in line)}"/>')
        x, y = place(*line[-1]).split(",")
        where = f'x="{float(x) + 8:.1f}" y="{y}" fill="{colour}" dominant-baseline="middle"'
        parts.append(f"<text {where}>{html.escape(name)}</text>")
    return "".join([*parts, "</svg>"])


def render(values: dict[str, str]) -> str:
    """Fill the page's template; every value is HTML."""
    template = (resources.files("cascaded_diffusion.demo") / "report.html").read_text(encoding="utf-8")
    return Template(template).substitute(values)
