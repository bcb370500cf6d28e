"""Previews of a run: the same few samples, drawn again and again as the weights improve."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cascaded_diffusion.cascade.generate import sample_stage
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.samplers import Callback, Step
from cascaded_diffusion.networks.unet import UNet
from cascaded_diffusion.pictures import labelled_grid, save_png
from cascaded_diffusion.pixels import to_float, to_uint8
from cascaded_diffusion.precision import autocast

__all__ = ["preview_path", "preview_picture", "stage_from_weights", "write_preview"]


def stage_from_weights(config: StageConfig, network: nn.Module, weights: Mapping[str, Tensor]) -> Stage:
    """A stage with ``weights`` in a copy of the network, so that training weights and averages never mix."""
    twin = copy.deepcopy(network)
    assert isinstance(twin, UNet)
    twin.load_state_dict({**twin.state_dict(), **weights})
    return Stage(config, twin)


def _evenly(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))


def preview_picture(
    stage: Stage, data: PreparedData, count: int, device: torch.device, callback: Callback | None = None
) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Rows of a preview and words for its title.

    The rows are samples, and for an SR stage the low-res input above and the truth below, from held-out images.
    """
    config = stage.config
    split = data.split("val" if "val" in data.splits else "train")
    settings = config.sampling
    if config.conditioning is None:
        index = torch.arange(count)
        labels = None if config.classes is None else index.to(device) % config.classes
        output = sample_stage(stage, settings, index=index, labels=labels, callback=callback)
        return [("samples", to_uint8(output.x0))], f"{settings.sampler}, {settings.steps} steps"
    if settings.augmentation == "truncated":
        settings = settings.model_copy(update={"augmentation": "nontruncated"})  # real images have no sampler to stop
    where = _evenly(len(split), count)
    index = torch.arange(len(where))
    low_resolution = config.conditioning.low_resolution
    assert low_resolution is not None
    labels = None if config.classes is None else torch.from_numpy(split.labels[where]).to(device)
    low = to_float(split.images(low_resolution)[where], device)
    output = sample_stage(stage, settings, index=index, labels=labels, low_res=low, callback=callback)
    shown = functional.interpolate(low, size=config.resolution, mode="nearest")
    rows = [
        ("low-res input", to_uint8(shown)),
        ("output", to_uint8(output.x0)),
        ("truth", np.asarray(split.images(config.resolution)[where])),
    ]
    return rows, f"{settings.sampler}, {settings.steps} steps, s={settings.s:g}"


def preview_path(run: Path, images: int) -> Path:
    """Where the preview after so many images is kept."""
    return run / "previews" / f"{images:012d}.png"


class _StoppedError(Exception):
    """The preview is not worth waiting for any more."""


def write_preview(
    run: Path,
    images: int,
    config: StageConfig,
    network: nn.Module,
    weights: Mapping[str, Tensor],
    data: PreparedData,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Sample with the averaged ``weights`` and write ``previews/IMAGES.png``; ``None`` if it was ``stopped``."""

    def ask(step: Step) -> None:
        if stopped():
            raise _StoppedError

    device = next(network.parameters()).device
    stage = stage_from_weights(config, network, weights)
    try:
        with autocast(config.training.precision, device):
            rows, words = preview_picture(stage, data, config.training.preview_count, device, ask)
    except _StoppedError:
        return None
    path = preview_path(run, images)
    scale = max(1, 64 // config.resolution)
    save_png(labelled_grid(rows, title=f"{config.name} after {images:,} images: {words}", scale=scale), path)
    return path
