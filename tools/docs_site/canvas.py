"""Drawing for the documentation's figures: dark ink on white, the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "GREY", "INK", "ORANGE", "Canvas", "picture"]

INK, GREY, BLUE, ORANGE, GREEN = "#22303c", "#8794a0", "#2f6db5", "#c8642a", "#3a8a55"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "svg.fonttype": "path",  # the same letters on every machine
    "svg.hashsalt": "cascaded-diffusion",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def picture(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) in a form that matplotlib draws with its own pixel values: uint8 (H, W, 3)."""
    return np.broadcast_to(image, (*image.shape[:2], 3))


class Canvas:
    """A sheet measured in inches from its lower left corner, on which pictures, words and arrows are placed."""

    def __init__(self, width: float, height: float) -> None:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever the user has set for other charts
            matplotlib.rcParams.update(_STYLE)
            self.figure = Figure(figsize=(width, height), facecolor="white")
            self.sheet = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
            self.sheet.set_axis_off()
        self.width, self.height = width, height

    def chart(self, x: float, y: float, width: float, height: float) -> Any:
        """Axes for a chart, with only the left and the lower spine."""
        with matplotlib.rc_context():
            matplotlib.rcParams.update(_STYLE)
            box = (x / self.width, y / self.height, width / self.width, height / self.height)
            axes = self.figure.add_axes(box)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, linewidth=0.7)
        return axes

    def image(self, image: np.ndarray, x: float, y: float, size: float, colour: str = GREY) -> None:
        """Draw an image's pixels as a square with its lower left corner at (x, y)."""
        extent = (x, x + size, y, y + size)
        self.sheet.imshow(picture(image), extent=extent, interpolation="nearest", aspect="auto", zorder=2)
        self.box(x, y, size, size, edge=colour, line=0.8, order=3)
        self.sheet.set(xlim=(0, self.width), ylim=(0, self.height))

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        edge: str,
        fill: str = "none",
        line: float = 1.2,
        order: float = 1,
    ) -> None:
        """A rectangle; ``line`` is the width of its edge in points."""
        rectangle = matplotlib.patches.Rectangle(
            (x, y), width, height, edgecolor=edge, facecolor=fill, linewidth=line, zorder=order
        )
        self.sheet.add_patch(rectangle)

    def words(self, text: str, x: float, y: float, **style: Any) -> None:
        """Text, centred at (x, y) unless told otherwise."""
        self.sheet.text(x, y, text, **{"ha": "center", "va": "center", "color": INK, **style})

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = INK, **style: Any) -> None:
        """An arrow; ``bend`` curves it."""
        bend = style.pop("bend", 0.0)
        shape = {
            "arrowstyle": "-|>",
            "shrinkA": 0,
            "shrinkB": 0,
            "linewidth": 1.2,
            "color": colour,
            "mutation_scale": 9,
        }
        arrow = shape | {"connectionstyle": f"arc3,rad={bend}"} | style
        self.sheet.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=4)

    def save(self, path: Path) -> None:
        """Write an SVG or a PNG, as the path's suffix says."""
        with matplotlib.rc_context():
            matplotlib.rcParams.update(_STYLE)
            if path.suffix == ".svg":
                FigureCanvasSVG(self.figure)
                self.figure.savefig(path, metadata={"Date": None, "Creator": None})
            else:
                FigureCanvasAgg(self.figure)
                self.figure.savefig(path, dpi=140, metadata={"Software": None})
