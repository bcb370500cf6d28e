"""Cropping and resizing of 8-bit images, exact to the last grey level.

Everything here is integer arithmetic, so the result is the same on every machine and for every number of workers.
Pillow's ``BOX`` filter is not used for shrinking: it rounds to 8 bits between its horizontal and its vertical pass.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["CROP_RULE", "RESIZE_RULE", "Pixels", "area_resize", "bicubic_enlarge", "centre_square", "zero_pad"]

Pixels = npt.NDArray[np.uint8]

CROP_RULE = "centre square of side min(height, width); top = (height - side) // 2, left = (width - side) // 2"
RESIZE_RULE = "area average of the crop, every source pixel weighted by its overlap, rounded half up"


def centre_square(images: Pixels) -> Pixels:
    """The largest centred square of ``images`` (..., H, W, C), as a view; an odd rest is lost at the far end."""
    height, width = images.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side, :]


def zero_pad(images: Pixels, margin: int) -> Pixels:
    """Put ``margin`` black pixels on each of the four sides of ``images`` (N, H, W, C)."""
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def area_resize(images: Pixels, size: int) -> Pixels:
    """Shrink square ``images`` (N, S, S, C) to (N, size, size, C), each output pixel the mean of the area it covers.

    ``size`` is in [1, S] and need not divide S: a source pixel on a border counts by the part of it that lies inside.
    The weighted sums are exact integers and are rounded once, half up.
    """
    number, side, width, channels = images.shape
    if side != width or not 1 <= size <= side:
        raise ValueError(f"cannot area-average images of {side}x{width} to {size}x{size}")
    if size == side:
        return images.copy()
    rows = images.transpose(1, 0, 2, 3).reshape(side, -1)  # (S, N S C); a view when N is 1
    half = _window_sums(rows, size, np.int32).reshape(size, number, side, channels)
    columns = half.transpose(2, 1, 0, 3).reshape(side, -1)  # (S, N R C)
    sums = _window_sums(columns, size, np.int64).reshape(size, number, size, channels)
    area = (side // math.gcd(side, size)) ** 2
    means = (2 * sums + area) // (2 * area)
    return np.ascontiguousarray(means.transpose(1, 2, 0, 3), dtype=np.uint8)


def _window_sums(values: npt.NDArray[np.generic], size: int, dtype: type[np.signedinteger]) -> npt.NDArray[np.generic]:
    """Sums of ``values`` (S, M) over ``size`` equal windows of the first axis, (size, M), in units of 1/unit of a row.

    Cut every row into ``unit`` = size / gcd slices; a window is then exactly S / gcd slices, whole rows and two rests.
    """
    side = len(values)
    divisor = math.gcd(side, size)
    unit, window = size // divisor, side // divisor
    sums = np.empty((size, values.shape[1]), dtype)
    for i in range(size):
        start, stop = i * window, (i + 1) * window
        first, last = start // unit, -(-stop // unit)  # rows first..last-1 touch the window
        before, after = start - first * unit, last * unit - stop  # slices of the end rows outside of it
        np.add.reduce(values[first:last], axis=0, dtype=dtype, out=sums[i])
        sums[i] *= unit
        if before:
            sums[i] -= values[first].astype(dtype) * dtype(before)
        if after:
            sums[i] -= values[last - 1].astype(dtype) * dtype(after)
    return sums


def bicubic_enlarge(images: Pixels, size: int) -> Pixels:
    """Enlarge square ``images`` (N, S, S, C) to (N, size, size, C), size > S, each channel by Pillow's bicubic."""
    enlarged = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
    for i, image in enumerate(images):
        for channel in range(image.shape[-1]):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            enlarged[i, ..., channel] = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC))
    return enlarged
