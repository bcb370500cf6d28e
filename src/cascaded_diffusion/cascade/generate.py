"""Running one stage: from noise (and a low-resolution image) to an image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cascaded_diffusion.cascade.guidance import stage_denoiser
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.conditioning.augmentation import ConditionedImage, condition_for_sampling
from cascaded_diffusion.diffusion.grid import extension_grid, sampling_grid
from cascaded_diffusion.diffusion.levels import sigma_of
from cascaded_diffusion.diffusion.process import q_sample
from cascaded_diffusion.diffusion.samplers import (
    SAMPLERS,
    Callback,
    NoiseSource,
    Step,
    evaluated_levels,
    evaluations,
)
from cascaded_diffusion.diffusion.schedule import Level
from cascaded_diffusion.pixels import to_float
from cascaded_diffusion.randomness import normal

__all__ = ["StageOutput", "low_res_input", "sample_stage", "stage_evaluations", "stage_grids", "stage_passes"]


class StageOutput(NamedTuple):
    """What a stage hands on, and what a person looks at: the same image unless the stage was stopped at s > 0."""

    x: Tensor
    """(N, C, R, R): the image, or z_s."""
    x0: Tensor
    """(N, C, R, R) in [-1, 1]: the image, or the last prediction of it."""


def stage_grids(stage: Stage, settings: SamplingConfig, stop: float = 0.0) -> list[list[Level]]:
    """The grids that sampling walks, one after the other: one, or two with the sampling-step extension."""
    schedule = stage.diffusion.schedule
    whole = partial(sampling_grid, schedule, settings.steps, endpoints=settings.endpoints, sigmas=settings.sigmas)
    grid = whole(stop=stop, start=settings.start)
    if not settings.extension:
        return [grid]
    return [whole(start=settings.start), extension_grid(schedule, whole(stop=stop))]


def stage_evaluations(stage: Stage, settings: SamplingConfig, stop: float = 0.0) -> int:
    """Evaluations of the denoiser (NFE) an image; guidance is not counted, see :func:`stage_passes`."""
    return sum(evaluations(settings.sampler, grid) for grid in stage_grids(stage, settings, stop))


def stage_passes(stage: Stage, settings: SamplingConfig, stop: float = 0.0) -> int:
    """Forward passes an image, those of guidance without class and of a guide counted where they happen."""
    more = (settings.guidance != 1) + (settings.guide != 1)
    levels = [
        level for grid in stage_grids(stage, settings, stop) for level in evaluated_levels(settings.sampler, grid)
    ]
    return len(levels) + more * sum(settings.guided_at(sigma_of(level.alpha_bar)) for level in levels)


def _conditioning(
    stage: Stage, settings: SamplingConfig, low_res: Tensor | None, seed: int, index: Tensor
) -> ConditionedImage | None:
    conditioning = stage.config.conditioning
    if conditioning is None:
        return None
    if low_res is None:
        raise ValueError(f"{stage.name} needs low-resolution images")
    noise = None
    if settings.augmentation == "nontruncated":
        noise = normal(seed, f"sampling/{stage.name}/condition", index.to(low_res.device), low_res.shape[1:])
    return condition_for_sampling(
        conditioning, stage.low_schedule, low_res, mode=settings.augmentation, s=settings.s, noise=noise
    )


def low_res_input(stage: Stage, low_res: np.ndarray, *, s: float, seed: int = 0) -> Tensor:
    """What a gaussian stage sees of given images at strength s: float (N, C, r, r), the very input of ``nontruncated``.

    Args:
        stage: an SR stage with gaussian augmentation.
        low_res: uint8 (N, r, r, C); image i gets the noise of sample i.
        s: strength.
        seed: the sample's seed.
    """
    device = next(stage.network.parameters()).device
    settings = stage.config.sampling.model_copy(update={"augmentation": "nontruncated", "s": s})
    condition = _conditioning(stage, settings, to_float(low_res, device), seed, torch.arange(len(low_res)))
    assert condition is not None  # an SR stage always has one
    return condition.image


@torch.no_grad()
def sample_stage(
    stage: Stage,
    settings: SamplingConfig,
    *,
    index: Tensor,
    labels: Tensor | None = None,
    low_res: Tensor | None = None,
    seed: int = 0,
    stop: float = 0.0,
    callback: Callback | None = None,
) -> StageOutput:
    """Sample one stage for one batch.

    Args:
        stage: the stage, on its device.
        settings: sampler, steps, guidance, and for an SR stage the augmentation mode and s.
        index: int64 (N,), global sample indices; sample i has the same noise whatever the batch.
        labels: int64 (N,) or ``None``.
        low_res: SR stages: (N, C, r, r); z_s itself if ``settings.augmentation`` is ``truncated``.
        seed: the sample's seed.
        stop: time at which to stop, for a truncated stage above.
        callback: called after every step.
    """
    device = next(stage.network.parameters()).device
    index = index.to(device)
    condition = _conditioning(stage, settings, low_res, seed, index)
    denoise = stage_denoiser(
        stage,
        settings,
        labels=labels,
        low_res=None if condition is None else condition.image,
        s=None if condition is None else condition.s,
    )
    shape = (stage.config.channels, stage.config.resolution, stage.config.resolution)
    grids = stage_grids(stage, settings, stop)
    x = normal(seed, f"sampling/{stage.name}/init", index, shape)
    if settings.start is not None:
        x = relay_start(stage, low_res, x, grids[0][0])
    x0 = torch.zeros_like(x)  # what is known of the image before any step
    total = sum(len(grid) - 1 for grid in grids)
    done = 0

    def report(step: Step) -> None:
        nonlocal x0
        x0 = step.x0
        if callback is not None:
            callback(replace(step, index=done + step.index, total=total))

    sampler, variance = SAMPLERS[settings.sampler], stage.config.diffusion.variance
    for part, grid in enumerate(grids):
        if part == 1:
            renoise = normal(seed, f"sampling/{stage.name}/extension", index, shape)
            x = q_sample(x, renoise, grid[0].alpha_bar)
        noise = _noise(stage, seed, index, shape, part)
        x = sampler(denoise, x, grid, noise=noise, callback=report, variance=variance)
        done += len(grid) - 1
    finished = grids[-1][-1].alpha_bar == 1
    return StageOutput(x, (x if finished else x0).clamp(-1, 1))


def relay_start(stage: Stage, low_res: Tensor | None, noise: Tensor, level: Level) -> Tensor:
    """The enlarged low-resolution image, noised to a level: where an SR stage starts in place of pure noise.

    After Relay Diffusion (2309.03350), which so passes on what the stage below has made; the image is still the
    stage's condition too, and its process is the usual one, without the paper's blur. (N, C, R, R).
    """
    conditioning = stage.config.conditioning
    assert conditioning is not None  # a base stage is refused with its settings
    if low_res is None:
        raise ValueError(f"{stage.name} needs low-resolution images to start from")
    size = (stage.config.resolution,) * 2
    large = functional.interpolate(low_res, size, mode=conditioning.upsample, align_corners=False)
    return q_sample(large.clamp(-1, 1), noise, level.alpha_bar)


def _noise(stage: Stage, seed: int, index: Tensor, shape: tuple[int, int, int], part: int) -> NoiseSource:
    purpose = f"sampling/{stage.name}/steps" + ("/extension" if part else "")
    return lambda i: normal(seed, purpose, index, shape, step=i)
