from __future__ import annotations

import numpy as np
import torch

from cascaded_diffusion.pixels import to_float, to_uint8

CPU = torch.device("cpu")


def test_every_grey_level_survives_both_ways() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_float(images, CPU)
    assert (floats.shape, floats.dtype) == ((1, 1, 16, 16), torch.float32)
    assert (float(floats.min()), float(floats.max())) == (-1.0, 1.0)
    assert np.array_equal(to_uint8(floats), images)


def test_channels_and_axes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    floats = to_float(images, CPU)
    assert floats.shape == (2, 3, 3, 5)
    assert float(floats[1, 2, 0, 4]) == np.float32(images[1, 0, 4, 2]) / np.float32(127.5) - 1
    assert np.array_equal(to_uint8(floats), images)


def test_it_rounds_and_clips() -> None:
    values = torch.tensor([-9.0, -1.004, -0.9963, -0.996, 0.9999, 1.5]).reshape(1, 1, 1, 6)
    assert to_uint8(values).ravel().tolist() == [0, 0, 0, 1, 255, 255]
    assert to_uint8(values.double()).flags.c_contiguous
    assert to_uint8(values.to(torch.bfloat16)).dtype == np.uint8


def test_views_and_read_only_arrays() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(to_float(images[::-1, ::2], CPU)), images[::-1, ::2])
    images.flags.writeable = False
    assert np.array_equal(to_uint8(to_float(images, CPU)), images)
