"""What all extractors share: checked images on the device, in the size and with the channels that the network takes."""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.features import Features
from cascaded_diffusion.evaluation.resizing import RESIZE_RULE, bicubic

__all__ = ["NetworkExtractor", "NetworkInput", "match_channels", "plain_arithmetic"]


class NetworkInput(NamedTuple):
    """What a network is given: its size in pixels (``None``: images as they are), its channels, images at once."""

    size: int | None
    channels: int
    at_once: int = 64


def match_channels(pixels: Tensor, channels: int) -> Tensor:
    """Give (N, C, R, R) images 1 or 3 channels: grey is repeated, colour becomes the mean of its channels.

    Raises:
        UserError: another number of channels is given or wanted.
    """
    given = pixels.shape[1]
    if given == channels:
        return pixels
    if {given, channels} != {1, 3}:
        raise UserError(f"images: {given} channels; this extractor takes grey or RGB images ({channels} inside)")
    return pixels.expand(-1, 3, -1, -1) if channels == 3 else pixels.mean(1, keepdim=True)


@contextlib.contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Full fp32 without gradients, whatever the caller has set: real and generated images must be treated alike."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_full_products())
        if device.type == "cuda":
            # cuDNN's convolutions use TF32, with its ten bits, unless told otherwise.
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        yield


@contextlib.contextmanager
def _full_products() -> Iterator[None]:
    """Matrix products of all 24 bits, where the caller has allowed fewer."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by another of torch's ways, which cannot be told from here
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class NetworkExtractor(ABC):
    """An :class:`~cascaded_diffusion.evaluation.features.Extractor` around a network.

    Attributes:
        name: what the keys of its scores end with.
        content_hash: SHA-256 of the weights and of how images are brought to them.
        resize: size and resize rule in words.
        class_names: the classes of the logits, or ``None``.
        dtype: the arithmetic.
        device: where it computes.
    """

    def __init__(
        self,
        name: str,
        *,
        weights_hash: str,
        network_input: NetworkInput,
        device: torch.device,
        scaling: str,
        resize: str | None = None,
        class_names: tuple[str, ...] | None = None,
        dtype: str = "fp32",
    ) -> None:
        """Describe the network.

        Args:
            name: see the class.
            weights_hash: hexadecimal SHA-256 of the weights.
            network_input: what :meth:`compute` is given.
            device: where the network is.
            scaling: how pixels are scaled, in words; it only enters the hash.
            resize: the rule in words, if the network resizes on its own.
            class_names: see the class.
            dtype: see the class.
        """
        size = network_input.size
        self.name, self.class_names, self.dtype, self.device = name, class_names, dtype, device
        self.resize = resize or f"{size}x{size}, {RESIZE_RULE}"
        recipe = (weights_hash, self.resize, scaling, dtype, "grey repeated, colour averaged")
        self.content_hash = hashlib.sha256("\n".join(recipe).encode()).hexdigest()
        self._input = network_input

    @abstractmethod
    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, D) and logits (N, K) of float32 images (N, C, R, R) in [0, 255]."""

    def __call__(self, images: np.ndarray, /) -> Features:
        """Features and logits of images.

        Args:
            images: uint8 (N, R, R, C), grey (C = 1) or RGB, N at least 1.

        Raises:
            UserError: images of another form.
            RuntimeError: features that are not finite.
        """
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.dtype != np.uint8 or 0 in images.shape:
            found = f"{images.dtype} {images.shape}"
            raise UserError(f"images: {found}; an extractor takes uint8 (N, R, R, C) with square images")
        parts = [self._batch(images[i : i + self._input.at_once]) for i in range(0, len(images), self._input.at_once)]
        logits = [part.logits for part in parts if part.logits is not None]
        return Features(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)

    def _batch(self, images: np.ndarray) -> Features:
        size, channels, _ = self._input
        with plain_arithmetic(self.device):
            # The copy is for read-only arrays (memory maps), which torch would warn of.
            pixels = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2).to(torch.float32)
            few = match_channels(pixels, min(channels, pixels.shape[1]))
            resized = few if size is None else bicubic(few, size)
            features, logits = self.compute(match_channels(resized, channels))
        if not bool(features.isfinite().all()):
            raise RuntimeError(f"{self.name}: features that are not finite; the extractor is broken")
        return Features(features.float().cpu(), None if logits is None else logits.float().cpu())
