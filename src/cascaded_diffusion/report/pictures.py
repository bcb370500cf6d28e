"""Images on the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascaded_diffusion.pictures import encode_png, to_picture
from cascaded_diffusion.report.markup import Html, png_tag

__all__ = ["class_label", "pixels_tag"]

_SIDE = 64
"""Smaller images are enlarged to this many CSS pixels on the page, pixel by pixel."""


def class_label(label: int, class_names: Sequence[str] | None) -> str:
    """A class in words, such as ``Bag``; nothing for -1."""
    if label < 0:
        return ""
    return class_names[label] if class_names else f"class {label}"


def pixels_tag(image: np.ndarray, description: str) -> Html:
    """A uint8 (H, W, C) image; small ones are enlarged so that their pixels show, large ones shrunk."""
    width = max(min(image.shape[1], 2 * _SIDE), _SIDE)
    return png_tag(encode_png(to_picture(image)), description, width=width, class_="pixels")
