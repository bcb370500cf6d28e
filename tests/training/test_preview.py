from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.training.preview import preview_picture, stage_from_weights, write_preview

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


def test_a_base_stage_shows_samples(
    random_stage: Callable[..., Stage], base_config: Configure, colour_data: PreparedData
) -> None:
    rows, words = preview_picture(random_stage(base_config()), colour_data, 6, CPU)
    assert [(name, images.shape) for name, images in rows] == [("samples", (6, 8, 8, 3))]
    assert words == "ddim, 4 steps"


@pytest.mark.parametrize("mode", ["nontruncated", "truncated"])
def test_an_sr_stage_shows_input_output_and_truth_side_by_side(
    mode: str, random_stage: Callable[..., Stage], sr_config: Configure, colour_data: PreparedData
) -> None:
    stage = random_stage(sr_config(sampling={"augmentation": mode}))
    rows, words = preview_picture(stage, colour_data, 5, CPU)
    assert [(name, images.shape) for name, images in rows] == [
        (name, (5, 16, 16, 3)) for name in ("low-res input", "output", "truth")
    ]
    # Plain colours: the held-out pictures look the same at both resolutions.
    low, _, truth = (images.astype(int) for _, images in rows)
    assert np.abs(low - truth).max() <= 1
    held_out = np.asarray(colour_data.split("val").images(16)).astype(int)
    assert all((np.abs(held_out - picture).max((1, 2, 3)) == 0).any() for picture in truth)
    assert "s=0.1" in words


def test_the_same_preview_twice(
    random_stage: Callable[..., Stage], sr_config: Configure, colour_data: PreparedData
) -> None:
    stage = random_stage(sr_config())
    first, second = (preview_picture(stage, colour_data, 3, CPU)[0] for _ in range(2))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def test_without_held_out_images_it_takes_training_images(
    random_stage: Callable[..., Stage], sr_config: Configure, grey_data: PreparedData
) -> None:
    stage = random_stage(sr_config(channels=1, classes=None))
    rows, _ = preview_picture(stage, grey_data, 200, CPU)
    assert len(rows[2][1]) == 40  # no more than there are


def test_a_base_draws_as_many_as_asked(
    random_stage: Callable[..., Stage], base_config: Configure, grey_data: PreparedData
) -> None:
    rows, _ = preview_picture(random_stage(base_config(channels=1, classes=None)), grey_data, 60, CPU)
    assert len(rows[0][1]) == 60


def test_a_preview_that_is_stopped_leaves_nothing(
    tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure, colour_data: PreparedData
) -> None:
    stage = random_stage(base_config(sampling={"steps": 5}))
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) == 3

    network = stage.network
    found = write_preview(tmp_path, 8, stage.config, network, network.state_dict(), colour_data, stopped=stopped)
    assert found is None
    assert len(asked) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_preview_is_a_picture_of_the_averaged_weights(
    tmp_path: Path, random_stage: Callable[..., Stage], base_config: Configure, colour_data: PreparedData
) -> None:
    config = base_config(training={"preview_count": 3})
    network = random_stage(config).network.train()
    pictures = []
    for factor in (1.0, 0.5):
        weights = {name: parameter * factor for name, parameter in network.named_parameters()}
        path = write_preview(tmp_path, 1234, config, network, weights, colour_data)
        assert path == tmp_path / "previews" / "000000001234.png"
        pictures.append(np.asarray(Image.open(path)))
    assert pictures[0].shape == pictures[1].shape
    assert not np.array_equal(pictures[0], pictures[1])
    assert network.training


def test_the_twin_shares_nothing_with_the_network(random_stage: Callable[..., Stage], base_config: Configure) -> None:
    network = random_stage(base_config()).network.train().requires_grad_(True)
    weights = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    stage = stage_from_weights(base_config(), network, weights)
    assert all(not bool(parameter.any()) for parameter in stage.network.parameters())
    assert any(bool(parameter.any()) for parameter in network.parameters())
    assert network.training
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in network.parameters())
    assert not stage.network.training
