"""Between the two forms of an image: uint8 (N, H, W, C) in files, float (N, C, H, W) in [-1, 1] in the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["to_float", "to_uint8"]


def to_float(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1], converted on the device."""
    if not isinstance(images, Tensor):
        # torch warns of arrays that it must not write to, such as those of a PIL image.
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    pixels = images.to(device, non_blocking=True)  # waits for nothing if they lie in pinned memory
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C), rounded and clipped."""
    pixels = (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())
