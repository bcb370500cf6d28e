"""Between the two forms of an image: uint8 (N, H, W, C) in files, float (N, C, H, W) in [-1, 1] in the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["ComingImages", "to_float", "to_uint8"]


def to_float(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1], converted on the device."""
    if not isinstance(images, Tensor):
        # torch warns of arrays that it must not write to, such as those of a PIL image.
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    pixels = images.to(device, non_blocking=True)  # waits for nothing if they lie in pinned memory
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C), rounded and clipped."""
    return ComingImages(images).array()


class ComingImages:
    """Images on their way to the host: made uint8 on the device, and copied while the device goes on with other work.

    From a CUDA device they go into pinned memory without anyone waiting; elsewhere they are there at once.
    """

    def __init__(self, images: Tensor) -> None:
        """Begin with float (N, C, H, W) in [-1, 1]; rounded and clipped."""
        pixels = (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        pixels = pixels.permute(0, 2, 3, 1).contiguous()
        self._arrived: torch.cuda.Event | None = None
        if pixels.device.type == "cuda":
            self._host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            self._host.copy_(pixels, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(pixels.device))
        else:
            self._host = pixels.cpu()

    def array(self) -> np.ndarray:
        """uint8 (N, H, W, C), once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()
