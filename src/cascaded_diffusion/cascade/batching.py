"""How many samples a stage works on at once: as asked for, or as memory allows.

A sample has the same noise and label in whatever batch it is made, so that every stage may cut the same samples into
batches of its own size: a base stage at 32 pixels fills an accelerator with hundreds, where one at 256 pixels takes
tens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import torch

from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.memory import free_memory, is_out_of_memory, release_cached
from cascaded_diffusion.networks.peak import forward_peak

__all__ = [
    "BatchSize",
    "BatchSizes",
    "Batches",
    "StageBatches",
    "block_size",
    "check_batch_size",
    "first_batch_size",
    "fitting_batch",
]

T = TypeVar("T")

BatchSize = int | Literal["auto"]
BatchSizes = BatchSize | Mapping[str, BatchSize]
"""One for all stages, or by stage name; a stage that is not named has ``auto``."""

_AUTO_BATCH = 64
_AUTO_BLOCK = 512
"""Samples that go through all stages together on an accelerator: enough to fill it at any resolution, few enough
for what waits between two stages, and what an interruption loses, to stay small."""
_SHARE = 0.7
"""Of the free memory: what an estimate leaves to work space and fragmentation."""
_SMALL_SIDE = 128
"""Pixels below which 64 images at once fit into any computer's memory."""


def first_batch_size(batch_size: BatchSize) -> int:
    """How many samples to begin with; ``UserError`` if it is neither a number from 1 nor ``auto``."""
    if batch_size == "auto":
        return _AUTO_BATCH
    try:
        size = operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1:
        raise UserError(f"batch_size: {batch_size!r} is not allowed; give a number from 1, or auto")
    return size


def check_batch_size(batch_size: BatchSizes, stages: Sequence[str]) -> None:
    """``UserError`` for a size that is none, or one for a stage that is not among ``stages``."""
    if not isinstance(batch_size, Mapping):
        first_batch_size(batch_size)
        return
    for name, size in batch_size.items():
        if name not in stages:
            raise UserError(f"batch_size: no stage {name!r} in use; allowed: {', '.join(stages)}")
        first_batch_size(size)


def _of_each(batch_size: BatchSizes, stages: Sequence[str]) -> dict[str, BatchSize]:
    if isinstance(batch_size, Mapping):
        return {name: batch_size.get(name, "auto") for name in stages}
    return dict.fromkeys(stages, batch_size)


def block_size(batch_size: BatchSizes, stages: Sequence[str], device: torch.device) -> int:
    """Samples that go through all stages together: as many as the stage that takes most at once.

    A function of what was asked alone, and not of the memory, so that an interrupted sampling finds its blocks again.
    """
    auto = _AUTO_BATCH if device.type == "cpu" else _AUTO_BLOCK
    return max(auto if size == "auto" else first_batch_size(size) for size in _of_each(batch_size, stages).values())


def fitting_batch(stage: Stage, device: torch.device, *, guided: bool, most: int) -> int:
    """The largest power of two up to ``most`` whose forward pass is estimated to fit into a device's free memory.

    The estimate is that of float32 (:func:`forward_peak`), which bf16 autocast stays below. Guidance runs two images
    for each sample.
    """
    free = free_memory(device)
    if free is None:
        return most
    cost = forward_peak(stage.network) * (2 if guided else 1)
    size = 1
    while 2 * size <= most and 2 * size * cost <= _SHARE * free:
        size *= 2
    return size


class Batches:
    """Runs work over samples in batches of one size; ``auto`` halves it for good when memory runs out."""

    def __init__(self, batch_size: BatchSize, *, start: int | None = None) -> None:
        """``start`` is what ``auto`` begins with."""
        self.is_auto = batch_size == "auto"
        self.size = start if self.is_auto and start is not None else first_batch_size(batch_size)
        self.halved = False

    def each(self, count: int, work: Callable[[int, int], T]) -> list[T]:
        """What ``work(start, stop)`` gives for each batch of ``count`` samples, in order.

        It is called again with a smaller batch if it ran out of memory.

        Raises:
            RuntimeError: out of memory, and the batch size cannot be halved.
        """
        parts: list[T] = []
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            try:
                parts.append(work(start, stop))
                start = stop
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self.is_auto or self.size == 1:
                    less = "" if self.size == 1 else "; a smaller batch size needs less, auto finds one"
                    raise RuntimeError(f"out of memory with {stop - start} samples at once{less}") from None
            # Half of what was tried, which near the end is less than the size. The tensors of that try are gone now.
            self.size, self.halved = max((stop - start) // 2, 1), True
            release_cached()
        return parts


class StageBatches:
    """The batches of every stage of a chain.

    Attributes:
        block: samples that go through all stages together; a stage cuts them into its own batches.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        batch_size: BatchSizes,
        device: torch.device,
        *,
        guided: Mapping[str, bool] | None = None,
    ) -> None:
        """Settle the blocks.

        Args:
            stages: those that run, in order.
            batch_size: as :meth:`Cascade.sample` takes it.
            device: where they compute.
            guided: for each stage, whether guidance doubles its batch.
        """
        self._stages = {stage.name: stage for stage in stages}
        self._asked = _of_each(batch_size, list(self._stages))
        self._device, self._guided = device, dict(guided or {})
        self._most = block_size("auto", list(self._stages), device)
        self._found: dict[str, Batches] = {}
        self.block = block_size(batch_size, list(self._stages), device)

    def of(self, name: str) -> Batches:
        """A stage's batches; ``auto`` looks at the free memory when the stage is first at work."""
        if name not in self._found:
            asked = self._asked[name]
            start = self._start(name) if asked == "auto" else None
            self._found[name] = Batches(asked, start=start)
        return self._found[name]

    def _start(self, name: str) -> int:
        stage = self._stages[name]
        # What a stage had to settle for is enough for those above, which make larger images.
        most = min([self._most, *(batches.size for batches in self._found.values() if batches.halved)])
        if self._device.type == "cpu" and stage.config.resolution < _SMALL_SIDE:
            return most
        return fitting_batch(stage, self._device, guided=self._guided.get(name, False), most=most)
