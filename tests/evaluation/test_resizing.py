"""The extractors' resize rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.resizing import bicubic, resize_bicubic


def _noise(side: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize("before, after", [(32, 12), (32, 31), (17, 40), (8, 32), (64, 5)])
def test_it_is_pillows_bicubic_without_rounding(before: int, after: int) -> None:
    images = _noise(before)
    ours = resize_bicubic(images, after)
    for n in range(2):
        for c in range(3):
            plane = Image.fromarray(images[n, :, :, c].astype(np.float32))
            theirs = np.asarray(plane.resize((after, after), Image.Resampling.BICUBIC)).clip(0, 255)
            np.testing.assert_allclose(ours[n, c].numpy(), theirs, atol=1e-2)
    assert not torch.equal(ours, ours.round())


def test_images_of_the_size_are_not_touched() -> None:
    images = _noise(9, channels=1)
    resized = resize_bicubic(images, 9)
    assert resized.dtype == torch.float32
    assert np.array_equal(resized[:, 0].numpy(), images[..., 0])
    pixels = torch.rand(1, 3, 4, 4)
    assert bicubic(pixels, 4) is pixels


def test_overshoot_is_clamped() -> None:
    images = np.zeros((1, 8, 8, 1), np.uint8)
    images[:, 4:] = 255
    resized = resize_bicubic(images, 24)
    assert resized.min() == 0
    assert resized.max() == 255


def test_fine_stripes_shrink_to_their_mean() -> None:
    """Without antialiasing they would give black, white or moire, depending on the phase."""
    images = np.zeros((1, 64, 64, 1), np.uint8)
    images[:, :, ::2] = 200
    assert (resize_bicubic(images, 9)[..., 1:-1] - 100).abs().max() < 2


def test_sizes_below_1_are_refused() -> None:
    with pytest.raises(UserError, match="size: 0 pixels"):
        resize_bicubic(_noise(4), 0)


def test_read_only_images_are_read_without_a_warning() -> None:
    images = _noise(4)
    images.flags.writeable = False
    assert resize_bicubic(images, 8).shape == (2, 3, 8, 8)
