"""Crops and augmentations of training images: what is done, what is told, and that both resolutions get the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cascaded_diffusion.cascade.stage import StageConfig, build_network
from cascaded_diffusion.conditioning.resizing import area_downsample
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.pixels import to_float
from cascaded_diffusion.training.batches import Batch, BatchSource
from cascaded_diffusion.training.geometry import AUGMENT_FEATURES, crop_at, draw_corner, draw_warp, warp, warp_low_res
from cascaded_diffusion.training.loop import train

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")
INDEX = torch.arange(4000)
CROP: dict[str, Any] = {"network": {"attention": [], "middle_attention": False}, "training": {"crop": 8}}


def _batch(config: StageConfig, data: PreparedData, start: int, stop: int) -> Batch:
    low = config.conditioning.low_schedule if config.conditioning else None
    schedule = Schedule(low) if low else None
    return BatchSource(config, data, CPU).batch(start, stop, Diffusion(config.diffusion), schedule)


def test_each_augmentation_is_drawn_by_itself_and_told() -> None:
    maps, told = draw_warp(3, INDEX, 0.3)
    assert told.shape == (4000, AUGMENT_FEATURES)
    acting = (told != 0).double().mean(dim=0)
    # Flip acts on half of its draws; cos - 1 and sin together, both shifts together.
    assert acting.tolist() == pytest.approx([0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], abs=0.03)
    still = (told == 0).all(dim=1)
    assert 0.1 < still.double().mean() < 0.3
    identity = torch.eye(2, 3).expand(int(still.sum()), 2, 3)
    assert torch.equal(maps[still], identity)
    assert not (maps[~still] == torch.eye(2, 3)).flatten(1).all(dim=1).any()
    nothing, silence = draw_warp(3, INDEX, 0.0)
    assert torch.equal(nothing, torch.eye(2, 3).expand(4000, 2, 3))
    assert not silence.any()


def test_the_map_is_what_is_told() -> None:
    """The forward map, put together from what the network is told, and the map that is used cancel."""
    maps, told = draw_warp(5, torch.arange(200), 1.0)
    maps, told = maps.double(), told.double()
    for matrix, (flip, scale, cos, sin, along, across, right, down) in zip(maps, told.tolist(), strict=True):
        turn = torch.tensor([[cos + 1, -sin], [sin, cos + 1]], dtype=torch.float64)
        stretch, angle = 0.2 * math.hypot(along, across), math.atan2(across, along) / 2
        axis = torch.tensor([[math.cos(angle)], [math.sin(angle)]], dtype=torch.float64)
        wide = axis @ axis.T * 2**stretch + (torch.eye(2) - axis @ axis.T) * 2**-stretch
        mirror = torch.diag(torch.tensor([1 - 2 * flip, 1], dtype=torch.float64))
        forward = wide @ turn @ (2 ** (0.2 * scale) * mirror)
        point = torch.tensor([0.3, -0.2], dtype=torch.float64)
        moved = forward @ point + 0.25 * torch.tensor([right, down], dtype=torch.float64)
        torch.testing.assert_close(matrix[:, :2] @ moved + matrix[:, 2], point, rtol=1e-4, atol=1e-5)


def test_warp_moves_pixels_where_the_map_says() -> None:
    images = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    flip, shift, quarter = torch.eye(2, 3), torch.eye(2, 3), torch.tensor([[0.0, 1, 0], [-1, 0, 0]])
    flip[0, 0] = -1
    shift[0, 2] = 2 / 8  # from one pixel further right
    warped = warp(images, torch.stack([flip, shift, quarter]))
    torch.testing.assert_close(warped[0], images[0].flip(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warped[1, :, :, :-1], images[1, :, :, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(warped[1, :, :, -1], images[1, :, :, -1], rtol=1e-5, atol=1e-5)  # reflected
    torch.testing.assert_close(warped[2], images[2].rot90(-1, (1, 2)), rtol=1e-5, atol=1e-5)
    still = warp(images, torch.eye(2, 3).expand(3, 2, 3))
    assert torch.equal(still, images)


def test_crops_start_everywhere_alike() -> None:
    corners = draw_corner(1, INDEX, 5)
    counts = torch.stack([torch.bincount(corners[:, axis], minlength=5) for axis in (0, 1)])
    assert (counts - 800).abs().max() < 110
    images = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    found = crop_at(images, torch.tensor([[0, 3], [2, 1]]), 3)
    assert torch.equal(found[0], images[0, :, 0:3, 3:6])
    assert torch.equal(found[1], images[1, :, 2:5, 1:4])


def test_image_and_low_resolution_image_are_cropped_alike(sr_config: Configure, grey_data: PreparedData) -> None:
    changes = {**CROP, "conditioning": {"augmentation": "none"}}
    config = sr_config(16, low=8, channels=1, classes=None, **changes)
    whole = sr_config(16, low=8, channels=1, classes=None, conditioning={"augmentation": "none"})
    cropped, full = _batch(config, grey_data, 0, 40), _batch(whole, grey_data, 0, 40)
    assert cropped.x0.shape == cropped.noise.shape == (40, 1, 8, 8)
    assert cropped.low_res is not None
    assert full.low_res is not None
    places = set()
    for i in range(40):
        row, column = next(
            (r, c)
            for r in range(0, 9, 2)
            for c in range(0, 9, 2)
            if torch.equal(cropped.x0[i], full.x0[i, :, r : r + 8, c : c + 8])
            and torch.equal(cropped.low_res[i], full.low_res[i, :, r // 2 : r // 2 + 4, c // 2 : c // 2 + 4])
        )
        places.add((row, column))
    assert len(places) > 3


def test_augmented_images_match_their_low_resolution_images(sr_config: Configure, grey_data: PreparedData) -> None:
    """A warped image's area average is the low-resolution image, of noise too, where moving both would not do."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 16, 16, generator=generator) * 2 - 1
    small = area_downsample(images, 8)
    maps, _ = draw_warp(0, torch.arange(40), 0.3)
    warped = warp(images, maps)
    torch.testing.assert_close(warp_low_res(small, maps, warped), area_downsample(warped, 8))
    assert (warp(small, maps) - area_downsample(warped, 8)).abs().mean() > 0.05
    uneven = torch.nn.functional.interpolate(images, size=6, mode="area")
    assert torch.equal(warp_low_res(uneven, maps, warped), warp(uneven, maps))
    changes = {"training": {"augment": 1.0}, "conditioning": {"augmentation": "none"}}
    batch = _batch(sr_config(16, low=8, channels=1, classes=None, **changes), grey_data, 0, 40)
    assert batch.low_res is not None
    torch.testing.assert_close(batch.low_res, area_downsample(batch.x0, 8))


def test_augmented_images_are_told_from_others(sr_config: Configure, grey_data: PreparedData) -> None:
    changes = {"training": {"augment": 1.0}, "conditioning": {"augmentation": "none"}}
    batch = _batch(sr_config(16, low=8, channels=1, classes=None, **changes), grey_data, 0, 40)
    assert batch.low_res is not None
    assert batch.augment is not None
    assert batch.augment.shape == (40, AUGMENT_FEATURES)
    matched = (area_downsample(batch.x0, 8) - batch.low_res).abs().mean(dim=(1, 2, 3))
    other = (area_downsample(batch.x0, 8) - batch.low_res.roll(1, 0)).abs().mean(dim=(1, 2, 3))
    assert matched.mean() < 0.02 < other.mean()


def test_with_probability_zero_nothing_is_touched(sr_config: Configure, colour_data: PreparedData) -> None:
    batch = _batch(sr_config(16, low=8, conditioning={"augmentation": "none"}), colour_data, 0, 8)
    source = BatchSource(sr_config(16, low=8), colour_data, CPU)
    assert batch.augment is None
    assert torch.equal(batch.x0, to_float(source.gather(0, 8).images[16], CPU))


def test_the_network_is_told_and_samples_are_not_augmented(base_config: Configure) -> None:
    network = build_network(base_config(8, training={"augment": 0.2}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments: dict[str, Any] = {"time": torch.tensor([10.0, 500.0]), "labels": torch.tensor([0, 1])}
    untold = network(x, **arguments)
    assert torch.equal(untold, network(x, **arguments, augment=torch.zeros(2, AUGMENT_FEATURES)))
    assert (network(x, **arguments, augment=torch.ones(2, AUGMENT_FEATURES)) - untold).abs().max() > 0.01
    assert build_network(base_config(8)).augment_embedding is None


def test_a_stage_trains_on_augmented_crops(sr_config: Configure, colour_data: PreparedData, tmp_path: Any) -> None:
    config = sr_config(16, low=8, network=CROP["network"], training={"crop": 8, "augment": 0.3, "preview_every": 64})
    result = train(config, colour_data, tmp_path / "run", device=CPU)
    assert result.images == 64
    # The preview is sampled at full size.
    assert (tmp_path / "run/previews/000000000064.png").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"training": {"crop": 16}}, "training.crop: 16 is not below the resolution 16"),
        ({"training": {"crop": 9}}, "training.crop: 9 does not fit; allowed: multiples of 2"),
        ({"training": {"crop": 8}, "network": {"middle_attention": True}}, "does not go with network.middle_attention"),
        ({"training": {"crop": 8}, "network": {"attention": [8]}}, "does not go with network.attention"),
    ],
)
def test_crops_that_a_stage_cannot_take(changes: dict[str, Any], words: str, sr_config: Configure) -> None:
    with pytest.raises(ValueError, match=words):
        sr_config(16, low=8, **changes)


def test_a_base_stage_is_not_cropped(base_config: Configure) -> None:
    with pytest.raises(ValueError, match=r"training.crop: 4, but base8 is a base stage"):
        base_config(8, training={"crop": 4})
