from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.cascade.show import class_grid, grid, grid_choice
from cascaded_diffusion.errors import UserError


def _images(count: int, side: int = 8, channels: int = 3) -> np.ndarray:
    """Image i is plain, of brightness 10 i."""
    levels = 10 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, side, side, channels)).copy()


def test_about_as_many_columns_as_rows() -> None:
    picture = grid(_images(7), scale=1)
    assert picture.size == (3 * 10 + 2, 3 * 10 + 2)
    assert picture.mode == "RGB"
    assert picture.getpixel((2 + 10 + 4, 2 + 4)) == (10, 10, 10)
    assert picture.getpixel((2 + 4, 2 + 20 + 4)) == (60, 60, 60)
    assert picture.getpixel((2 + 10 + 4, 2 + 20 + 4)) == (255, 255, 255)


def test_columns_scale_and_grey() -> None:
    picture = grid(_images(6, channels=1), columns=6, scale=3)
    assert picture.size == (3 * (6 * 10 + 2), 3 * 12)
    assert picture.mode == "L"
    assert grid(_images(1)).size == (8 * 12, 8 * 12)  # 8 pixels are enlarged until they are 64
    assert grid(_images(1, side=200)).size == (204, 204)
    assert grid(_images(3)[2]).getpixel((40, 40)) == (20, 20, 20)  # one image


def test_labels_make_rows() -> None:
    images = _images(6)
    by_name = grid(images, labels=["Bag", "Shoe"] * 3, scale=2)
    pixels = np.asarray(by_name)
    rows = [sorted({int(level) for level in row[:, 0] if level % 10 == 0}) for row in (pixels[14], pixels[36])]
    assert {0, 20, 40} <= set(rows[0])
    assert not {10, 30, 50} & set(rows[0])
    assert {10, 30, 50} <= set(rows[1])
    assert grid(images, labels=[3] * 6, columns=2).width < grid(images, labels=[3] * 6).width


@pytest.mark.parametrize(
    "images, options, words",
    [
        (np.zeros((2, 8, 8, 3), np.float32), {}, "images: float32 (2, 8, 8, 3) is not allowed; give uint8"),
        (np.zeros((8, 8), np.uint8), {}, "images: uint8 (8, 8) is not allowed"),
        (np.zeros((2, 8, 8, 2), np.uint8), {}, "images: uint8 (2, 8, 8, 2) is not allowed"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "images: uint8 (0, 8, 8, 3) is not allowed"),
        (np.zeros((10_001, 1, 1, 1), np.uint8), {}, "images: 10,001 in one grid; at most 10,000"),
        (_images(3), {"labels": [1, 2]}, "labels: 2 for 3 images; give one for each"),
        (_images(3), {"columns": 0}, "columns: 0 is not allowed; give a number from 1"),
        (_images(3), {"scale": 10**9}, "scale: 1000000000 is not allowed"),
    ],
)
def test_refusals(images: np.ndarray, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        grid(images, **options)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("labels", [np.arange(60) * 7 % 5, np.full(60, -1), np.array([3])])
@pytest.mark.parametrize("columns, rows", [(10, 40), (4, 3)])
def test_a_class_grid_needs_only_the_chosen_images(labels: np.ndarray, columns: int, rows: int) -> None:
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 1), np.uint8)
    chosen = grid_choice(labels, columns=columns, rows=rows)
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) <= columns * rows
    size = {"columns": columns, "rows": rows}
    whole = class_grid(images, labels, None, **size)
    assert whole.tobytes() == class_grid(images[chosen], labels[chosen], None, **size).tobytes()
