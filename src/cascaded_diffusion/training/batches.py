"""Which images a training position means, and everything random about it.

Training image ``i`` (counted from 0 over the whole run) has its pixels, flip, class drop, time, s and noise as
functions of the seed and ``i`` alone, so that batch size, accumulation, ranks and interruptions change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.conditioning.augmentation import augment_for_training
from cascaded_diffusion.conditioning.resizing import flip_where
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.pixels import to_float
from cascaded_diffusion.randomness import normal, permutation, uniform

__all__ = ["Batch", "BatchSource"]


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
        split = self.data.split("train")
        for resolution in self._resolutions():
            split.images(resolution)
        if self.config.channels != self.data.channels:
            raise UserError(f"channels: the stage has {self.config.channels}, the data {self.data.channels}")
        if self.config.classes is not None and self.config.classes != self.data.classes:
            raise UserError(f"classes: the stage has {self.config.classes}, the data {self.data.classes or 'none'}")

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

    def batch(self, start: int, stop: int, diffusion: Diffusion, low_schedule: Schedule | None) -> Batch:
        """The batch of training positions ``start`` to ``stop`` - 1."""
        config, seed = self.config, self.config.training.seed
        index = torch.arange(start, stop)
        where = self.positions(index.numpy())
        split = self.data.split("train")
        flip = uniform(seed, "training/flip", index) < (0.5 if config.flip else 0.0)

        def pixels(resolution: int) -> Tensor:
            images = to_float(split.images(resolution)[where], self.device)
            return flip_where(images, flip.to(self.device)) if config.flip else images

        x0 = pixels(config.resolution)
        low_res = s = None
        if config.conditioning is not None:
            assert config.conditioning.low_resolution is not None  # settled by StageConfig
            clean = pixels(config.conditioning.low_resolution)
            low_res, s = augment_for_training(config.conditioning, low_schedule, clean, seed, index)
        return Batch(
            x0=x0,
            labels=self._labels(where, index),
            low_res=low_res,
            s=s,
            noise=normal(seed, "training/noise", index.to(self.device), x0.shape[1:]),
            times=diffusion.draw_times(uniform(seed, "training/time", index)),
        )

    def _labels(self, where: np.ndarray, index: Tensor) -> Tensor | None:
        if self.config.classes is None:
            return None
        labels = torch.from_numpy(self.data.split("train").labels[where])
        dropped = uniform(self.config.training.seed, "training/class-drop", index) < self.config.training.class_dropout
        return torch.where(dropped, torch.full_like(labels, -1), labels).to(self.device)
