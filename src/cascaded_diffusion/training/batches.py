"""Which images a training position means, and everything random about it.

Training image ``i`` (counted from 0 over the whole run) has its pixels, flip, class drop, time, s and noise as
functions of the seed and ``i`` alone, so that batch size, accumulation, ranks and interruptions change nothing.
"""

from __future__ import annotations

import errno
import math
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.conditioning.augmentation import augment_for_training
from cascaded_diffusion.conditioning.resizing import flip_where
from cascaded_diffusion.data.packed import ImageRows, PackedImages
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.pixels import to_float
from cascaded_diffusion.randomness import normal, permutation, uniform
from cascaded_diffusion.training.geometry import crop_at, draw_corner, draw_warp, warp, warp_low_res

__all__ = ["Batch", "BatchSource", "Gathered"]


class Batch(NamedTuple):
    """All that a training step needs, on the training device but for ``times``."""

    x0: Tensor
    """(N, C, R, R) in [-1, 1]."""
    labels: Tensor | None
    """int64 (N,), -1 where the class was dropped; ``None`` without classes."""
    low_res: Tensor | None
    """(N, C, r, r), augmented; ``None`` for a base stage."""
    s: Tensor | None
    """(N,), for gaussian augmentation."""
    noise: Tensor
    """Standard normal, of x0's shape."""
    times: Tensor
    """float64 (N,) in (0, 1], on the CPU."""
    augment: Tensor | None = None
    """(N, 8), what the network is told of the augmentation; ``None`` without."""


class Gathered(NamedTuple):
    """What the disk has for some training positions, on the CPU; in pinned memory for a CUDA device."""

    at: Tensor
    """int64 (N,), the training positions."""
    images: dict[int, Tensor]
    """For each resolution that the stage needs, uint8 (N, R, R, C)."""
    labels: Tensor | None
    """int64 (N,); ``None`` without classes."""


def _rows_of(images: ImageRows) -> Callable[[np.ndarray], np.ndarray]:
    """Reads images by position: uint8 (N, R, R, C) for the places (N,)."""
    return images.__getitem__ if isinstance(images, PackedImages) else _Rows(images)


class _Rows:
    """Reads rows of a mapped ``.npy`` file by position.

    Through the file, not through the map: a disk that fails or a file that has been cut short is an ``OSError``, where
    the map would end the process with SIGBUS.
    """

    def __init__(self, mapped: ImageRows) -> None:
        assert isinstance(mapped, np.memmap)  # as prepared data are
        self._path, self._offset, self._shape = str(mapped.filename), mapped.offset, mapped.shape[1:]
        self._bytes = int(np.prod(self._shape))
        self._descriptor = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __call__(self, where: np.ndarray) -> np.ndarray:
        """uint8 (N, R, R, C) for the rows ``where`` (N,)."""
        rows = np.empty((len(where), *self._shape), np.uint8)
        for row, place in zip(rows, where.tolist(), strict=True):
            if os.preadv(self._descriptor, [row], self._offset + place * self._bytes) != self._bytes:
                raise OSError(errno.EIO, f"image {place} is not whole; the file has been cut short", self._path)
        return rows


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return permutation(seed, "training/order", length, step=epoch).numpy()


@dataclass(frozen=True)
class BatchSource:
    """Makes the batch of any range of training positions.

    Raises:
        UserError: if the data lacks a resolution, or has no class labels where the stage has classes.
    """

    config: StageConfig
    data: PreparedData
    device: torch.device

    def __post_init__(self) -> None:
        if self.config.channels != self.data.channels:
            raise UserError(f"channels: the stage has {self.config.channels}, the data {self.data.channels}")
        if self.config.classes is not None and self.config.classes != self.data.classes:
            raise UserError(f"classes: the stage has {self.config.classes}, the data {self.data.classes or 'none'}")
        self._rows  # noqa: B018 - opens the files: what is missing is told now, and what is deleted later stays readable

    def _resolutions(self) -> tuple[int, ...]:
        conditioning = self.config.conditioning
        if conditioning is None or conditioning.low_resolution is None:
            return (self.config.resolution,)
        return (self.config.resolution, conditioning.low_resolution)

    def positions(self, index: np.ndarray) -> np.ndarray:
        """Where in the training split the images at training positions ``index`` lie: every epoch in its own order."""
        length = len(self.data.split("train"))
        epochs, within = np.divmod(index, length)
        seed = self.config.training.seed
        return np.array(
            [_epoch_order(seed, int(epoch), length)[place] for epoch, place in zip(epochs, within, strict=True)]
        )

    @cached_property
    def _rows(self) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
        split = self.data.split("train")
        return {resolution: _rows_of(split.images(resolution)) for resolution in self._resolutions()}

    def gather(self, start: int, stop: int) -> Gathered:
        """Read the images and labels of training positions ``start`` to ``stop`` - 1, whichever thread asks for them.

        Raises:
            OSError: they cannot be read.
        """
        index = torch.arange(start, stop)
        where = self.positions(index.numpy())
        images = {resolution: torch.from_numpy(rows(where)) for resolution, rows in self._rows.items()}
        labels = None
        if self.config.classes is not None:
            labels = torch.from_numpy(self.data.split("train").labels[where])
        if self.device.type == "cuda":
            images = {resolution: pixels.pin_memory() for resolution, pixels in images.items()}
        return Gathered(index, images, labels)

    def finish(self, gathered: Gathered, diffusion: Diffusion, low_schedule: Schedule | None) -> Batch:
        """Make a batch of what was gathered: flip, augment and draw, on the training device."""
        config, seed, index = self.config, self.config.training.seed, gathered.at
        flip = uniform(seed, "training/flip", index) < (0.5 if config.flip else 0.0)
        maps = augment = None
        if config.training.augment:
            maps, augment = draw_warp(seed, index, config.training.augment)
            augment = augment.to(self.device)
        corner = self._corner(index)

        def pixels(resolution: int) -> Tensor:
            images = to_float(gathered.images[resolution], self.device)
            return flip_where(images, flip.to(self.device)) if config.flip else images

        def cropped(images: Tensor) -> Tensor:
            if corner is None or config.training.crop is None:
                return images
            # Corners count in the smallest squares of which both resolutions have whole pixels.
            resolution = images.shape[-1]
            square = resolution // self._squares
            return crop_at(images, corner * square, config.training.crop * resolution // config.resolution)

        whole = pixels(config.resolution)
        if maps is not None:
            whole = warp(whole, maps)
        x0 = cropped(whole)
        low_res = s = None
        if config.conditioning is not None:
            assert config.conditioning.low_resolution is not None  # settled by StageConfig
            clean = pixels(config.conditioning.low_resolution)
            if maps is not None:
                clean = warp_low_res(clean, maps, whole)
            low_res, s = augment_for_training(config.conditioning, low_schedule, cropped(clean), seed, index)
        return Batch(
            x0=x0,
            labels=self._labels(gathered),
            low_res=low_res,
            s=s,
            noise=normal(seed, "training/noise", index.to(self.device), x0.shape[1:]),
            times=diffusion.draw_times(uniform(seed, "training/time", index)),
            augment=augment,
        )

    @property
    def _squares(self) -> int:
        """How many squares of whole pixels at both resolutions lie side by side."""
        return math.gcd(*self._resolutions())

    def _corner(self, index: Tensor) -> Tensor | None:
        crop = self.config.training.crop
        if crop is None:
            return None
        places = self._squares - crop * self._squares // self.config.resolution + 1
        return draw_corner(self.config.training.seed, index, places)

    def batch(self, start: int, stop: int, diffusion: Diffusion, low_schedule: Schedule | None) -> Batch:
        """The batch of training positions ``start`` to ``stop`` - 1."""
        return self.finish(self.gather(start, stop), diffusion, low_schedule)

    def _labels(self, gathered: Gathered) -> Tensor | None:
        if gathered.labels is None:
            return None
        seed, share = self.config.training.seed, self.config.training.class_dropout
        dropped = uniform(seed, "training/class-drop", gathered.at) < share
        return torch.where(dropped, torch.full_like(gathered.labels, -1), gathered.labels).to(self.device)
