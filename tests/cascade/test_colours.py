"""A cascade trained on classes of plain colours samples the colours that it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.training.export import load_part
from cascaded_diffusion.training.loop import train

Configure = Callable[..., StageConfig]


@pytest.fixture(scope="module")
def cascade(
    tmp_path_factory: pytest.TempPathFactory, colour_data: PreparedData, base_config: Configure, sr_config: Configure
) -> Cascade:
    """4 -> 8 pixels, trained for some seconds, assembled from run folders."""
    root: Path = tmp_path_factory.mktemp("colour-runs")
    settings: dict[str, Any] = {
        "images": 4800,
        "batch_size": 24,
        "learning_rate": 3e-3,
        "decay": "cosine",
        "decay_start": 0.3,
        "ema_half_lives": [300],
        "log_every": 3200,
        "checkpoint_every": 10_000,
    }
    continuous = {"noise_schedule": {"timesteps": None}, "noise_embedding": "angle"}
    low = {"low_schedule": {"timesteps": None}, "s_max": 1.0}
    parts = []
    for config in (
        base_config(4, training=settings, diffusion=continuous, sampling={"steps": 8}),
        sr_config(8, low=4, training=settings, diffusion=continuous, conditioning=low),
    ):
        train(config, colour_data, root / config.name, device=torch.device("cpu"))
        parts.append(load_part(root / config.name)[0])
    return Cascade(parts)


def _nearest(images: np.ndarray, colours: np.ndarray) -> list[int]:
    mean = images.reshape(len(images), -1, 3).mean(1)
    distances = np.linalg.norm(mean[:, None] - colours[None].astype(float), axis=-1)
    return [int(i) for i in distances.argmin(1)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"augmentation": "truncated", "s": 0.2},
        {"augmentation": "none"},
        {"sampler": "dpmpp-2m"},
        {"sampler": "ancestral", "steps": 16},
        {"guidance": 1.5},
    ],
    ids=["default", "truncated", "clean", "dpmpp-2m", "ancestral", "guided"],
)
def test_every_sample_has_its_classs_colour(settings: dict[str, Any], cascade: Cascade, colours: np.ndarray) -> None:
    every = cascade.sample(24, return_stages=True, **settings)
    for name, images in every.items():
        assert _nearest(images, colours) == [i % 4 for i in range(24)], name
        assert np.abs(images.mean((1, 2)) - colours[np.arange(24) % 4]).mean() < 40


def test_another_class_is_another_colour(cascade: Cascade, colours: np.ndarray) -> None:
    """The same noise, asked for in another order."""
    order = [2, 0, 3, 1]
    assert _nearest(cascade.sample(8, classes=order), colours) == order * 2
    assert _nearest(cascade.sample(8, classes=["3", "1"]), colours) == [3, 1] * 4


def test_the_class_decides_in_the_sr_stage_too(cascade: Cascade, colours: np.ndarray) -> None:
    """At s = 1 nothing is left of the low-res image, so the colour can only come from the label given to this stage."""
    low = cascade.sample(4, classes=[0], until="base4")
    assert _nearest(low, colours) == [0] * 4
    for wanted in range(4):
        images = cascade.sample(low_res=low, classes=[wanted], s=1.0, augmentation="nontruncated")
        assert _nearest(images, colours) == [wanted] * 4
