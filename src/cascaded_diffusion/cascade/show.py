"""What samples look like: in a grid, or by class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.pictures import labelled_grid, tile, to_picture

__all__ = ["class_grid", "grid", "grid_choice"]

_MOST_IMAGES = 10_000
_SEEN_SIZE = 64


def grid(
    images: np.ndarray,
    *,
    labels: Sequence[int | str] | np.ndarray | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Images as one picture, which a notebook shows and ``.save(path)`` writes.

    Args:
        images: uint8 (N, H, W, C), C 1 or 3, as :meth:`Cascade.sample` gives them; or one image, (H, W, C).
        labels: a name or number for each image. They are then shown in one row a label, with the label beside it.
        columns: images in a row; default about as many as rows, and with labels at most ten.
        scale: pixels a pixel; default what makes an image 64 pixels wide or more.

    Raises:
        UserError: the array is none of images, or the labels are not as many.
    """
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"images: {images.dtype} {images.shape} is not allowed; give uint8 (N, H, W, 1) or (N, H, W, 3)"
        )
    if len(images) > _MOST_IMAGES:
        raise UserError(f"images: {len(images):,} in one grid; at most {_MOST_IMAGES:,}")
    for what, number in (("columns", columns), ("scale", scale)):
        if number is not None and not 1 <= number <= _MOST_IMAGES:
            raise UserError(f"{what}: {number} is not allowed; give a number from 1 to {_MOST_IMAGES}")
    scale = scale or max(1, _SEEN_SIZE // images.shape[1])
    if labels is None:
        return to_picture(tile(images, columns or math.ceil(len(images) ** 0.5)), scale)
    names = [str(label) for label in labels]
    if len(names) != len(images):
        raise UserError(f"labels: {len(names)} for {len(images)} images; give one for each")
    rows = []
    for name in dict.fromkeys(names):
        own = images[[i for i, other in enumerate(names) if other == name]]
        rows.append((name, own[: columns or 10]))
    return labelled_grid(rows, scale=scale)


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
    scale = max(1, _SEEN_SIZE // images.shape[1])
    present = sorted({int(label) for label in labels})
    if present == [-1]:
        starts = range(0, min(len(images), columns * rows), columns)
        parts = [(str(start), images[start : start + columns]) for start in starts]
    else:
        names = {label: class_names[label] if class_names and label >= 0 else str(label) for label in present}
        parts = [(names[label], images[labels == label][:columns]) for label in present[:rows]]
    return labelled_grid(parts, title=title, scale=scale)


def grid_choice(labels: np.ndarray, *, columns: int = 10, rows: int = 40) -> np.ndarray:
    """Which of many images :func:`class_grid` shows: their places, ascending; it needs no others."""
    present = sorted({int(label) for label in labels})
    if present == [-1]:
        return np.arange(min(len(labels), columns * rows))
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:columns] for label in present[:rows]]))
