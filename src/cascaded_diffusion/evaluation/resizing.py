"""The one resize rule of the extractors: antialiased bicubic, never rounded back to whole grey levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cascaded_diffusion.errors import UserError

__all__ = ["RESIZE_RULE", "bicubic", "resize_bicubic"]

RESIZE_RULE = "antialiased bicubic"


def bicubic(pixels: Tensor, size: int) -> Tensor:
    """Resize float images (N, C, R, R) in [0, 255] to (N, C, ``size``, ``size``), clamped to [0, 255].

    The kernel is Pillow's (a = -0.5, widened by the factor when shrinking). Most libraries' resizing does not widen it
    and so aliases, which alone moves a Frechet distance by more than many models differ (Parmar, Zhang and Zhu 2022,
    arXiv 2104.11222). Nothing is rounded to uint8 in between. Images that have the size are not touched.
    """
    if pixels.shape[-2:] == (size, size):
        return pixels
    resized = functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 255)


def resize_bicubic(images: np.ndarray, size: int) -> Tensor:
    """Resize uint8 (N, R, R, C) images to float32 (N, C, ``size``, ``size``) in [0, 255], see :func:`bicubic`.

    Raises:
        UserError: a size below 1.
    """
    if size < 1:
        raise UserError(f"size: {size} pixels; give 1 or more")
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(torch.float32)
    return bicubic(pixels, size)
