from fractions import Fraction

import numpy as np
import pytest

from cascaded_diffusion.data.pixels import area_resize, bicubic_enlarge, centre_square, zero_pad


def exact_area_average(image: np.ndarray, size: int) -> np.ndarray:
    """Every output pixel from the overlaps of its square with the source pixels, in fractions."""
    side = len(image)
    out = np.zeros((size, size, image.shape[2]), np.uint8)
    scale = Fraction(side, size)

    def overlaps(i: int) -> list[tuple[int, Fraction]]:
        low, high = i * scale, (i + 1) * scale
        parts = [(k, min(high, Fraction(k + 1)) - max(low, Fraction(k))) for k in range(side)]
        return [(k, part) for k, part in parts if part > 0]

    for y in range(size):
        for x in range(size):
            for c in range(image.shape[2]):
                total = sum(int(image[j, i, c]) * a * b for j, a in overlaps(y) for i, b in overlaps(x))
                out[y, x, c] = int(total / scale**2 + Fraction(1, 2))
    return out


@pytest.mark.parametrize("side, size", [(12, 4), (12, 12), (7, 3), (9, 8), (10, 4), (13, 1), (6, 5)])
def test_area_resize_is_the_exact_area_average(side: int, size: int) -> None:
    image = np.random.default_rng(side).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    expected = np.stack([exact_area_average(one, size) for one in image])
    np.testing.assert_array_equal(area_resize(image, size), expected)


def test_area_resize_by_a_whole_factor_is_the_mean_rounded_half_up() -> None:
    image = np.array([[0, 1, 255, 255], [0, 1, 255, 254], [1, 0, 3, 3], [1, 0, 3, 4]], np.uint8)[None, ..., None]
    # means 0.5, 254.75, 0.5, 3.25
    np.testing.assert_array_equal(area_resize(image, 2)[0, ..., 0], [[1, 255], [1, 3]])


def test_area_resize_of_one_level_keeps_it() -> None:
    for level in (0, 1, 127, 254, 255):
        assert (area_resize(np.full((1, 101, 101, 3), level, np.uint8), 64) == level).all()


def test_area_resize_of_a_stack_is_that_of_each_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3), dtype=np.uint8)
    whole = area_resize(images, 4)
    for i in range(5):
        np.testing.assert_array_equal(whole[i], area_resize(images[i : i + 1], 4)[0])


def test_area_resize_refuses_to_enlarge_and_rectangles() -> None:
    with pytest.raises(ValueError, match="8x8 to 9x9"):
        area_resize(np.zeros((1, 8, 8, 1), np.uint8), 9)
    with pytest.raises(ValueError, match="8x9"):
        area_resize(np.zeros((1, 8, 9, 1), np.uint8), 4)


def test_area_resize_does_not_share_memory_with_its_input() -> None:
    image = np.zeros((1, 4, 4, 1), np.uint8)
    assert not np.shares_memory(area_resize(image, 4), image)


@pytest.mark.parametrize("height, width, top, left", [(5, 8, 0, 1), (8, 5, 1, 0), (6, 6, 0, 0), (4, 6, 0, 1)])
def test_centre_square_starts_at_half_the_rest_rounded_down(height: int, width: int, top: int, left: int) -> None:
    image = np.arange(height * width, dtype=np.uint8).reshape(1, height, width, 1)
    square = centre_square(image)
    side = min(height, width)
    np.testing.assert_array_equal(square, image[:, top : top + side, left : left + side])


def test_zero_pad_puts_black_pixels_on_every_side() -> None:
    padded = zero_pad(np.full((3, 28, 28, 1), 9, np.uint8), 2)
    assert padded.shape == (3, 32, 32, 1)
    assert (padded[:, 2:30, 2:30] == 9).all()
    assert padded.sum() == 9 * 3 * 28 * 28


def test_bicubic_enlarge_keeps_flat_channels_apart() -> None:
    image = np.zeros((1, 3, 3, 3), np.uint8) + np.array([10, 100, 250], np.uint8)
    enlarged = bicubic_enlarge(image, 8)
    assert enlarged.shape == (1, 8, 8, 3)
    assert (enlarged == np.array([10, 100, 250], np.uint8)).all()
