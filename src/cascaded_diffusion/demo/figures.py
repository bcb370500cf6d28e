"""The report's pictures: how an image comes about, and what s does."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from PIL import Image
from torch.nn import functional

from cascaded_diffusion.cascade.chain import Cascade, CascadeStep
from cascaded_diffusion.cascade.generate import low_res_input
from cascaded_diffusion.pictures import labelled_grid
from cascaded_diffusion.pixels import to_uint8

__all__ = ["denoising_strips", "enlarge", "s_effect", "stages_side_by_side"]


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Draw every pixel of (N, r, r, C) as a square, up to ``size`` pixels a side."""
    factor = max(1, size // images.shape[1])
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def denoising_strips(
    cascade: Cascade, label: int | str | None = None, *, seed: int = 0, columns: int = 11
) -> Image.Image:
    """Every stage's sampler at work on one image: above what it holds, below what the network takes the image to be.

    Args:
        cascade: the cascade.
        label: the image's class, an id or a name; default the first, or none if the cascade has no classes.
        seed: of the image.
        columns: at most so many steps, evenly spaced.
    """
    frames: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def watch(event: CascadeStep) -> None:
        frames[event.stage].append((to_uint8(event.step.x[:1])[0], to_uint8(event.step.x0[:1])[0]))

    cascade.sample(1, None if label is None else [label], seed=seed, callback=watch)
    rows = []
    for name, steps in frames.items():
        shown = np.unique(np.linspace(0, len(steps) - 1, min(columns, len(steps))).round().astype(int))
        size = list(cascade.stages.values())[-1].config.resolution
        rows.append((f"{name}: sample", enlarge(np.stack([steps[i][0] for i in shown]), size)))
        rows.append((f"{name}: predicted image", enlarge(np.stack([steps[i][1] for i in shown]), size)))
    return labelled_grid(rows, scale=2)


def stages_side_by_side(stages: dict[str, np.ndarray], count: int) -> Image.Image:
    """The same samples after every stage, one row a stage."""
    size = max(images.shape[1] for images in stages.values())
    return labelled_grid([(name, enlarge(images[:count], size)) for name, images in stages.items()], scale=2)


def s_effect(
    cascade: Cascade, low_res: np.ndarray, labels: list[int], strengths: list[float], *, seed: int = 0
) -> Image.Image:
    """The same low-resolution images enlarged with several s: what the SR stage sees, and what it makes of it."""
    name = list(cascade.stages)[1]
    stage = cascade.stages[name]
    size = stage.config.resolution
    rows = [("low-res", enlarge(low_res, size))]
    for s in strengths:
        seen = low_res_input(stage, low_res, s=s, seed=seed)
        shown = to_uint8(functional.interpolate(seen, size=size, mode="nearest"))
        made = cascade.sample(
            None, labels, low_res=low_res, start_stage=name, until=name, s=s, augmentation="nontruncated", seed=seed
        )
        assert isinstance(made, np.ndarray)
        rows += [(f"s = {s:g}: input", shown), (f"s = {s:g}: output", made)]
    return labelled_grid(rows, scale=2)
