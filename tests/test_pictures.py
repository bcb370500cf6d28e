from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.cascade.show import class_grid
from cascaded_diffusion.pictures import encode_png, labelled_grid, save_png, tile, to_picture


@pytest.fixture
def images() -> np.ndarray:
    """Five 4x6 RGB images, each of one value."""
    return np.broadcast_to(np.arange(10, 60, 10, dtype=np.uint8)[:, None, None, None], (5, 4, 6, 3)).copy()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_the_images_pixels(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, channels), dtype=np.uint8)
    assert np.array_equal(np.asarray(to_picture(image)).reshape(3, 5, channels), image)
    large = np.asarray(to_picture(image, 4)).reshape(12, 20, channels)
    assert np.array_equal(large, image.repeat(4, 0).repeat(4, 1))


def test_tiles_stand_in_rows_with_gaps(images: np.ndarray) -> None:
    canvas = tile(images, columns=3, gap=1)
    assert canvas.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert (canvas[1:5, 1:7] == 10).all()
    assert (canvas[1:5, 15:21] == 30).all()
    assert (canvas[6:10, 8:14] == 50).all()
    assert (canvas[6:10, 15:21] == 255).all()
    assert (canvas[0] == 255).all()
    assert (canvas[:, 0] == 255).all()


def test_a_labelled_grid_shows_every_image_once(images: np.ndarray) -> None:
    images[..., 2] = 255  # a colour that no letter has
    picture = np.asarray(labelled_grid([("ab", images[:2]), ("a longer label", images[2:])], title="title", scale=2))
    where = {value: (picture == (value, value, 255)).all(-1) for value in (10, 20, 30, 40, 50)}
    assert {value: int(found.sum()) for value, found in where.items()} == dict.fromkeys(where, 4 * 6 * 4)
    rows = {value: np.flatnonzero(found.any(1)) for value, found in where.items()}
    assert np.array_equal(rows[10], rows[20])
    assert np.array_equal(rows[30], rows[50])
    assert rows[10].max() < rows[30].min()
    longer = labelled_grid([("a", images)], title="x" * 200)
    assert longer.width > 1000


def test_png_bytes_and_files(tmp_path: Path, images: np.ndarray) -> None:
    picture = to_picture(images[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(picture)))), images[0])
    save_png(picture, tmp_path / "deep" / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), images[0])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_a_class_grid_has_a_row_for_each_class() -> None:
    labels = np.array([2, 0, 2, 0, 2])
    images = np.zeros((5, 32, 32, 1), np.uint8)
    images[labels == 2] = 77
    picture = np.asarray(class_grid(images, labels, ["a", "b", "c"], columns=2))
    where = (picture == 77).all(-1)
    assert where.sum() == 2 * 64 * 64  # two of the three, at scale 2
    black = (picture == 0).all(-1)
    assert np.flatnonzero(where.any(1)).min() > np.flatnonzero(black[:, -80:].any(1)).min()


@pytest.mark.parametrize("labels", [[-1] * 5, [3] * 5])
def test_a_grid_without_names(labels: list[int]) -> None:
    picture = class_grid(np.zeros((5, 8, 8, 3), np.uint8), np.array(labels), None, columns=2, title="five")
    assert picture.mode == "RGB"
    rows = 3 if labels[0] == -1 else 1
    assert picture.height > rows * 64


def test_a_grid_of_a_thousand_classes_is_cut() -> None:
    labels = np.arange(1000)
    picture = class_grid(np.zeros((1000, 64, 64, 1), np.uint8), labels, None, rows=5)
    assert picture.height < 6 * 80
