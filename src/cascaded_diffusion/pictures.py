"""Pictures for people: grids of images, with words beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cascaded_diffusion.files import atomic_write

__all__ = ["encode_png", "labelled_grid", "save_png", "tile", "to_picture"]


def to_picture(image: np.ndarray, scale: int = 1) -> Image.Image:
    """A uint8 (H, W, C) array as a PIL picture, each pixel drawn ``scale`` pixels wide."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return (
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        if scale > 1
        else picture
    )


def tile(images: np.ndarray, columns: int, gap: int = 2, background: int = 255) -> np.ndarray:
    """Lay (N, H, W, C) images out in rows of ``columns``: one uint8 (H', W', C) array."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    canvas = np.full(shape, background, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def labelled_grid(
    rows: Sequence[tuple[str, np.ndarray]], *, title: str | None = None, scale: int = 2, font_size: int = 15
) -> Image.Image:
    """One row of images for each label, with the label to its left.

    Args:
        rows: pairs of a label and uint8 images (N, H, W, C); rows may differ in length, not in image size.
        title: a line above.
        scale: pixels a pixel.
        font_size: of the labels.
    """
    font = ImageFont.load_default(size=font_size)
    gap, margin = 2 * scale, font_size // 2
    height, width = rows[0][1].shape[1] * scale, rows[0][1].shape[2] * scale
    label_width = int(max(font.getlength(label) for label, _ in rows)) + 2 * margin
    top = 2 * font_size if title else margin
    columns = max(len(images) for _, images in rows)
    canvas_width = label_width + columns * (width + gap) + margin
    if title:
        canvas_width = max(canvas_width, int(font.getlength(title)) + 2 * margin)
    row_height = max(height, font_size + 4) + gap
    canvas = Image.new("RGB", (canvas_width, top + len(rows) * row_height + margin), "white")
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((margin, margin // 2), title, fill="black", font=font)
    for row, (label, images) in enumerate(rows):
        y = top + row * row_height
        draw.text((margin, y + row_height // 2 - font_size // 2 - gap), label, fill="black", font=font)
        for column, image in enumerate(images):
            canvas.paste(to_picture(image, scale).convert("RGB"), (label_width + column * (width + gap), y))
    return canvas


def encode_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG that appears only when complete."""
    with atomic_write(path) as file:
        file.write(encode_png(picture))
