"""Walking a chain of stages, batch by batch, once everything asked for has been checked."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.cascade.generate import sample_stage, stage_evaluations, stage_grids, stage_passes
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.settings import stop_for
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.diffusion.samplers import Step
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.memory import is_out_of_memory, release_cached
from cascaded_diffusion.pixels import to_float, to_uint8

__all__ = [
    "CascadeStep",
    "FinishedImages",
    "Keeper",
    "Plan",
    "Watch",
    "first_batch_size",
    "in_batches",
    "sample_batches",
]

T = TypeVar("T")

_AUTO_BATCH = 64


class CascadeStep(NamedTuple):
    """What a callback of :meth:`Cascade.sample` sees: the stage, its sampler's step, and which samples these are."""

    stage: str
    step: Step
    samples: Tensor


class Keeper(Protocol):
    """Keeps finished batches, uint8 (n, R, R, C) for every stage, so that an interrupted sampling can go on."""

    def load(self, start: int, stop: int) -> dict[str, np.ndarray] | None: ...

    def save(self, start: int, stop: int, images: Mapping[str, np.ndarray]) -> None: ...


class Plan(NamedTuple):
    """What a call of :meth:`Cascade.sample` will do: the stages that run, and their settings."""

    stages: tuple[Stage, ...]
    settings: dict[str, SamplingConfig]

    def stop(self, position: int) -> float:
        """The time at which the stage at ``position`` stops."""
        above = self.stages[position + 1] if position + 1 < len(self.stages) else None
        return stop_for(above, self.settings)

    def steps(self) -> dict[str, int]:
        """Sampler steps an image, for every stage."""
        return {
            stage.name: sum(len(g) - 1 for g in stage_grids(stage, self.settings[stage.name], self.stop(i)))
            for i, stage in enumerate(self.stages)
        }

    def describe(self) -> str:
        """The settings in words, such as ``base16 ddim 20 steps; sr32 ddim 10 steps, nontruncated s=0.1``."""
        parts = []
        for stage in self.stages:
            settings = self.settings[stage.name]
            words = [f"{stage.name} {settings.sampler} {settings.steps} steps"]
            if settings.augmentation != "none":
                words.append(f"{settings.augmentation} s={settings.s:g}")
            parts.append(", ".join(words + settings.words()))
        return "; ".join(parts)

    def evaluations(self) -> dict[str, int]:
        """Evaluations of the denoiser an image, for every stage; guidance is not counted."""
        return {
            stage.name: stage_evaluations(stage, self.settings[stage.name], self.stop(i))
            for i, stage in enumerate(self.stages)
        }

    def passes(self) -> dict[str, int]:
        """Forward passes an image, for every stage, those of guidance and of a guide included."""
        return {
            stage.name: stage_passes(stage, self.settings[stage.name], self.stop(i))
            for i, stage in enumerate(self.stages)
        }


Watch = Callable[[CascadeStep], None]


def first_batch_size(batch_size: int | Literal["auto"]) -> int:
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


def sample_batches(
    plan: Plan,
    labels: Tensor,
    low_res: np.ndarray | None,
    *,
    seed: int,
    batch_size: int | Literal["auto"],
    device: torch.device,
    callback: Watch | None,
    first: int = 0,
    keep: Keeper | None = None,
) -> dict[str, np.ndarray]:
    """Sample as many images as there are labels: uint8 (N, R, R, C) for every stage of the plan.

    Args:
        plan: the stages and their settings.
        labels: int64 (N,), -1 without class.
        low_res: uint8 (N, r, r, C) for a plan that starts with an SR stage.
        seed: the samples' seed.
        batch_size: samples at once; ``auto`` halves it when memory runs out, which changes no image.
        device: where the stages are.
        callback: called after every step of every stage.
        first: global index of the first label: a share of a longer run gets the very images it has there.
        keep: takes finished batches, and has those that need not be made again.

    Raises:
        RuntimeError: out of memory, and the batch size cannot be halved.
    """

    def work(start: int, stop: int) -> dict[str, np.ndarray]:
        kept = None if keep is None else keep.load(start, stop)
        if kept is not None:
            return kept
        index = torch.arange(start, stop)
        carried = None if low_res is None else to_float(low_res[start:stop], device)
        images = _sample_batch(plan, index + first, labels[start:stop].to(device), carried, seed, callback)
        if keep is not None:
            keep.save(start, stop, images)
        return images

    parts = in_batches(len(labels), batch_size, work)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_batches(count: int, batch_size: int | Literal["auto"], work: Callable[[int, int], T]) -> list[T]:
    """What ``work(start, stop)`` gives for each batch of ``count`` samples, in order.

    Args:
        count: samples in all.
        batch_size: samples at once; ``auto`` halves it when memory runs out.
        work: called for one batch after the other, and again with a smaller one if it ran out of memory.

    Raises:
        RuntimeError: out of memory, and the batch size cannot be halved.
    """
    size = first_batch_size(batch_size)
    parts: list[T] = []
    start = 0
    while start < count:
        stop = min(start + size, count)
        try:
            parts.append(work(start, stop))
            start = stop
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size != "auto" or size == 1:
                less = "" if size == 1 else "; a smaller batch size needs less, auto finds one"
                raise RuntimeError(f"out of memory with {stop - start} samples at once{less}") from None
        # Half of what was tried, which near the end is less than the batch size. The tensors of that try are gone now.
        size = max((stop - start) // 2, 1)
        release_cached()
    return parts


class FinishedImages:
    """A callback of sampling that adds up the steps of all stages to images finished."""

    def __init__(self, watch: Callable[[str, int, int], None], count: int, plan: Plan, *, done: int = 0) -> None:
        """``watch`` is called with ``samples``, images finished, ``done`` of them before, and ``count``."""
        self._watch, self._count = watch, count
        self._cost = max(sum(plan.steps().values()), 1)
        self._done = done * self._cost

    def __call__(self, step: CascadeStep) -> None:
        self._done += len(step.samples)
        self._watch("samples", min(self._done // self._cost, self._count), self._count)


def _sample_batch(
    plan: Plan, index: Tensor, labels: Tensor, carried: Tensor | None, seed: int, callback: Watch | None
) -> dict[str, np.ndarray]:
    """Run every stage on one batch; ``carried`` (N, C, r, r) is what the first stage enlarges."""
    images: dict[str, np.ndarray] = {}
    for position, stage in enumerate(plan.stages):

        def watch(step: Step, name: str = stage.name) -> None:
            if callback is not None:
                callback(CascadeStep(name, step, index))

        stop = plan.stop(position)
        output = sample_stage(
            stage,
            plan.settings[stage.name],
            index=index,
            labels=labels if stage.config.classes is not None else None,
            low_res=carried,
            seed=seed,
            stop=stop,
            callback=watch,
        )
        images[stage.name] = to_uint8(output.x0)
        # Only a truncated stage above takes z_s; the others get an image, as in training.
        carried = output.x if stop > 0 else output.x0
    return images
