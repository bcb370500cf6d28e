"""What samples look like, by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cascaded_diffusion.cascade.pictures import labelled_grid

__all__ = ["class_grid"]


def class_grid(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None,
    *,
    title: str | None = None,
    columns: int = 10,
    rows: int = 40,
) -> Image.Image:
    """One labelled row for each class, at most ``columns`` images of it; without classes rows of ``columns`` images.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,), -1 without classes.
        class_names: names of the classes, or ``None``.
        title: a line above.
        columns: images in a row.
        rows: at most this many; a picture of a thousand classes is none.
    """
    scale = max(1, 64 // images.shape[1])
    present = sorted({int(label) for label in labels})
    if present == [-1]:
        starts = range(0, min(len(images), columns * rows), columns)
        parts = [(str(start), images[start : start + columns]) for start in starts]
    else:
        names = {label: class_names[label] if class_names and label >= 0 else str(label) for label in present}
        parts = [(names[label], images[labels == label][:columns]) for label in present[:rows]]
    return labelled_grid(parts, title=title, scale=scale)
