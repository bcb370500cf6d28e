"""Colours of images, and how a super-resolution stage changes those of the image that it enlarges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.conditioning.resizing import area_downsample
from cascaded_diffusion.data.pixels import area_resize
from cascaded_diffusion.evaluation.statistics import FeatureStatistics

__all__ = ["ChannelStatistics", "ColourDrift", "colour_drift", "colour_statistics"]

_BATCH = 256


class ChannelStatistics(NamedTuple):
    """Mean and (population) standard deviation of each channel's pixels: float64 (C,), on the scale [0, 255]."""

    mean: np.ndarray
    std: np.ndarray


class ColourDrift(NamedTuple):
    """High minus low of each channel's mean and standard deviation: float64 (C,), on the scale [0, 255]."""

    mean: np.ndarray
    std: np.ndarray


def _check(images: np.ndarray, what: str) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or images.size == 0:
        raise ValueError(f"{what}: {images.dtype} of shape {images.shape}, must be uint8 (N, H, W, C) and not empty")


def _measured(images: np.ndarray, resolution: int) -> ChannelStatistics:
    """Of images reduced to ``resolution`` by area, rounded only where it does not divide theirs."""
    statistics = FeatureStatistics.empty(images.shape[-1])
    for start in range(0, len(images), _BATCH):
        some = np.ascontiguousarray(images[start : start + _BATCH])
        if some.shape[2] % resolution:
            some = area_resize(some, resolution)
        pixels = torch.from_numpy(some).to(torch.float64)
        statistics = statistics.add(_pixels(area_downsample(pixels.permute(0, 3, 1, 2), resolution)))
    variance = statistics.outer.diagonal() / statistics.count
    return ChannelStatistics(statistics.mean.numpy(), variance.sqrt().numpy())


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) to one row a pixel, (N H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def colour_statistics(images: np.ndarray) -> ChannelStatistics:
    """Mean and standard deviation of each channel over all pixels of all images.

    Args:
        images: uint8 (N, R, R, C), not empty.

    Raises:
        ValueError: another type or shape.
    """
    _check(images, "images")
    return _measured(images, images.shape[2])


def colour_drift(low: np.ndarray, high: np.ndarray) -> ColourDrift:
    """How colours move when a stage enlarges ``low`` to ``high``: statistics of high, reduced by area, minus low's.

    A faithful stage has 0 everywhere; a shifted mean is a tint, a smaller standard deviation is washed-out contrast.

    Args:
        low: uint8 (N, r, r, C).
        high: uint8 (N, R, R, C), R at least r.

    Raises:
        ValueError: other types or shapes, or differing N or C.
    """
    _check(low, "low-resolution images")
    _check(high, "high-resolution images")
    if len(low) != len(high) or low.shape[-1] != high.shape[-1]:
        raise ValueError(f"high-resolution images: shape {high.shape} does not go with low-resolution {low.shape}")
    before, after = _measured(low, low.shape[2]), _measured(high, low.shape[2])
    return ColourDrift(after.mean - before.mean, after.std - before.std)
