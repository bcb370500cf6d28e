"""Resizing of float images in the network's form, (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cascaded_diffusion.errors import UserError

__all__ = ["area_downsample", "flip_where"]


def area_downsample(x: Tensor, resolution: int) -> Tensor:
    """Average square blocks: (N, C, R, R) -> (N, C, r, r), r = ``resolution`` dividing R."""
    size = x.shape[-1]
    if size % resolution:
        raise UserError(f"resolution: {resolution} does not divide {size}")
    return functional.avg_pool2d(x, size // resolution) if size != resolution else x


def flip_where(x: Tensor, flip: Tensor) -> Tensor:
    """Mirror the images for which ``flip`` (bool, (N,)) holds left to right."""
    return torch.where(flip.reshape(-1, 1, 1, 1), x.flip(-1), x)
