"""Walking a chain of stages, batch by batch, once everything asked for has been checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cascaded_diffusion.cascade.batching import Batches, BatchSize, BatchSizes, StageBatches, first_batch_size
from cascaded_diffusion.cascade.generate import sample_stage, stage_evaluations, stage_grids, stage_passes
from cascaded_diffusion.cascade.offload import OffloadedStages
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.settings import stop_for
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.diffusion.samplers import Step
from cascaded_diffusion.pixels import ComingImages, to_float

__all__ = [
    "BatchKeeper",
    "CascadeStep",
    "FinishedImages",
    "Plan",
    "Watch",
    "first_batch_size",
    "in_batches",
    "sample_batches",
]

T = TypeVar("T")


class CascadeStep(NamedTuple):
    """What a callback of :meth:`Cascade.sample` sees: the stage, its sampler's step, and which samples these are."""

    stage: str
    step: Step
    samples: Tensor


class BatchKeeper(Protocol):
    """Keeps finished batches, uint8 (n, R, R, C) for every stage, so that an interrupted sampling can go on.

    Samples count from the first of the whole run, whatever share of it is made here.
    """

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


def sample_batches(
    plan: Plan,
    labels: Tensor,
    low_res: np.ndarray | None,
    *,
    seed: int,
    batch_size: BatchSizes,
    device: torch.device,
    callback: Watch | None,
    first: int = 0,
    keep: BatchKeeper | None = None,
    collect: bool = True,
    offloaded: OffloadedStages | None = None,
) -> dict[str, np.ndarray]:
    """Sample as many images as there are labels: uint8 (N, R, R, C) for every stage of the plan.

    Samples go through the chain in blocks, and every stage cuts a block into batches of its own size. While a block is
    computed, an accelerator copies the images of the one before, and they are kept.

    Args:
        plan: the stages and their settings.
        labels: int64 (N,), -1 without class.
        low_res: uint8 (N, r, r, C) for a plan that starts with an SR stage.
        seed: the samples' seed.
        batch_size: samples at once, for all stages or by stage name; ``auto`` goes by the memory, and halves when it
            runs out, which changes no image.
        device: where the stages are.
        callback: called after every step of every stage.
        first: global index of the first label: a share of a longer run gets the very images it has there.
        keep: takes finished blocks, and has those that need not be made again.
        collect: whether images are returned; if not, ``keep`` alone has them, and memory holds no more than two blocks.
        offloaded: has the weights of the stages that are not at work.

    Raises:
        RuntimeError: out of memory, and the batch size cannot be halved.
    """
    guided = {stage.name: plan.settings[stage.name].guidance != 1 for stage in plan.stages}
    batches = StageBatches(plan.stages, batch_size, device, guided=guided)
    results: dict[str, np.ndarray] = {}

    def finish(start: int, stop: int, images: dict[str, np.ndarray], *, is_new: bool) -> None:
        if keep is not None and is_new:
            keep.save(first + start, first + stop, images)
        if collect:
            for name, part in images.items():
                if name not in results:
                    results[name] = np.empty((len(labels), *part.shape[1:]), np.uint8)
                results[name][start:stop] = part

    waiting = _Waiting(finish)
    with waiting, offloaded or contextlib.nullcontext():
        for start in range(0, len(labels), batches.block):
            stop = min(start + batches.block, len(labels))
            kept = None if keep is None else keep.load(first + start, first + stop)
            if kept is not None:
                finish(start, stop, kept, is_new=False)
                continue
            index = torch.arange(start, stop)
            carried = None if low_res is None else to_float(low_res[start:stop], device)
            labelled = labels[start:stop].to(device)
            made = _sample_batch(plan, index + first, labelled, carried, seed, callback, batches, offloaded)
            waiting.put(start, stop, made)
            if device.type == "cpu":
                waiting.flush()  # it is all there already, and what is kept need not be made again
    return results


_Coming = dict[str, list[ComingImages]]


class _Waiting:
    """The block whose images are still on their way, finished when the device has been given the next, or at the end.

    Also at an end by an error or a signal: what is made is kept.
    """

    def __init__(self, finish: Callable[..., None]) -> None:
        self._finish = finish
        self._block: tuple[int, int, _Coming] | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.flush()
            return
        # The error that ends the work is the one to tell, also where it has left a device that answers no more.
        with contextlib.suppress(RuntimeError):
            self.flush()

    def put(self, start: int, stop: int, coming: _Coming) -> None:
        self.flush()
        self._block = (start, stop, coming)

    def flush(self) -> None:
        if self._block is None:
            return
        (start, stop, coming), self._block = self._block, None
        images = {name: np.concatenate([part.array() for part in parts]) for name, parts in coming.items()}
        self._finish(start, stop, images, is_new=True)


def in_batches(count: int, batch_size: BatchSize, work: Callable[[int, int], T]) -> list[T]:
    """What ``work(start, stop)`` gives for each batch of ``count`` samples, in order; see :meth:`Batches.each`."""
    return Batches(batch_size).each(count, work)


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
    plan: Plan,
    index: Tensor,
    labels: Tensor,
    carried: Tensor | None,
    seed: int,
    callback: Watch | None,
    batches: StageBatches,
    offloaded: OffloadedStages | None = None,
) -> _Coming:
    """Run every stage on one block; ``carried`` (N, C, r, r) is what the first stage enlarges."""
    images: _Coming = {}
    names = [stage.name for stage in plan.stages]
    for position, stage in enumerate(plan.stages):
        stop = plan.stop(position)
        is_last = position + 1 == len(names)

        def work(
            start: int, end: int, stage: Stage = stage, low_res: Tensor | None = carried, stop: float = stop
        ) -> tuple[ComingImages, Tensor]:
            def watch(step: Step) -> None:
                if callback is not None:
                    callback(CascadeStep(stage.name, step, index[start:end]))

            output = sample_stage(
                stage,
                plan.settings[stage.name],
                index=index[start:end],
                labels=labels[start:end] if stage.config.classes is not None else None,
                low_res=None if low_res is None else low_res[start:end],
                seed=seed,
                stop=stop,
                callback=watch,
            )
            # Only a truncated stage above takes z_s; the others get an image, as in training.
            return ComingImages(output.x0), output.x if stop > 0 else output.x0

        at_work = (
            contextlib.nullcontext()
            if offloaded is None
            else offloaded.at_work(stage.name, names[(position + 1) % len(names)])
        )
        with at_work:
            made = batches.of(stage.name).each(len(index), work)
        images[stage.name] = [coming for coming, _ in made]
        carried = None if is_last else torch.cat([handed_on for _, handed_on in made])
    return images
