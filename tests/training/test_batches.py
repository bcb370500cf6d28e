from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.conditioning.resizing import area_downsample
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.diffusion.denoiser import Diffusion
from cascaded_diffusion.diffusion.schedule import Schedule
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.batches import Batch, BatchSource

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


def _batch(config: StageConfig, data: PreparedData, start: int, stop: int) -> Batch:
    low = config.conditioning.low_schedule if config.conditioning else None
    schedule = Schedule(low) if low else None
    return BatchSource(config, data, CPU).batch(start, stop, Diffusion(config.diffusion), schedule)


def _joined(batches: list[Batch]) -> list[torch.Tensor | None]:
    columns = zip(*batches, strict=True)
    return [None if column[0] is None else torch.cat(column) for column in columns]


@pytest.mark.parametrize("kind", ["base", "gaussian", "blur", "none"])
@pytest.mark.parametrize("cuts", [[0, 1, 2, 3, 7, 20], [0, 13, 20], [0, 4, 8, 12, 16, 20]])
def test_image_i_is_the_same_however_it_is_batched(
    kind: str, cuts: list[int], base_config: Configure, sr_config: Configure, colour_data: PreparedData
) -> None:
    """Across the end of an epoch (64 images), and down to the last bit."""
    config = base_config(flip=True) if kind == "base" else sr_config(flip=True, conditioning={"augmentation": kind})
    offset = 55
    whole = _batch(config, colour_data, offset, offset + 20)
    parts = [_batch(config, colour_data, offset + a, offset + b) for a, b in pairwise(cuts)]
    for together, apart in zip(whole, _joined(parts), strict=True):
        if together is None:
            assert apart is None
        else:
            assert apart is not None
            assert torch.equal(together, apart)


def test_what_a_base_and_an_sr_stage_get(
    base_config: Configure, sr_config: Configure, grey_data: PreparedData, colour_data: PreparedData
) -> None:
    base = _batch(base_config(), colour_data, 0, 5)
    assert base.x0.shape == base.noise.shape == (5, 3, 8, 8)
    assert base.low_res is None
    assert base.s is None
    assert base.labels is not None
    assert base.times.shape == (5,)
    gaussian = _batch(sr_config(), colour_data, 0, 5)
    assert gaussian.x0.shape == (5, 3, 16, 16)
    assert gaussian.low_res is not None
    assert gaussian.low_res.shape == (5, 3, 8, 8)
    assert gaussian.s is not None
    assert gaussian.s.shape == (5,)
    grey = sr_config(channels=1, classes=None, conditioning={"augmentation": "blur"})
    blur = _batch(grey, grey_data, 0, 5)
    assert blur.labels is None
    assert blur.s is None


def test_every_epoch_visits_every_image_once_in_another_order(
    base_config: Configure, colour_data: PreparedData
) -> None:
    length = len(colour_data.split("train"))
    source = BatchSource(base_config(), colour_data, CPU)
    epochs = [source.positions(np.arange(e * length, (e + 1) * length)) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(length))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], np.arange(length))


def test_another_seed_is_another_run(base_config: Configure, colour_data: PreparedData) -> None:
    one, two = (_batch(base_config(training={"seed": seed}), colour_data, 0, 16) for seed in (0, 1))
    assert not torch.equal(one.noise, two.noise)
    assert not torch.equal(one.times, two.times)
    assert not torch.equal(one.x0, two.x0)


def test_flip_is_shared_by_both_resolutions(sr_config: Configure, grey_data: PreparedData) -> None:
    """Gradients show their side: with a flip of its own the low-res image would be another picture."""
    config = sr_config(channels=1, classes=None, flip=True, conditioning={"augmentation": "none"})
    batch = _batch(config, grey_data, 0, 200)
    assert batch.low_res is not None
    assert (area_downsample(batch.x0, 8) - batch.low_res).abs().max() < 1.5 / 127.5  # two roundings to grey levels
    slope = batch.x0[..., -1].mean((1, 2)) - batch.x0[..., 0].mean((1, 2))
    flipped = float((slope < 0).float().mean())
    assert 0.35 < flipped < 0.65


def test_without_flip_nothing_is_mirrored(sr_config: Configure, grey_data: PreparedData) -> None:
    batch = _batch(sr_config(channels=1, classes=None, flip=False), grey_data, 0, 40)
    assert bool((batch.x0[..., -1] >= batch.x0[..., 0]).all())


def test_labels_travel_with_their_images(
    base_config: Configure, colour_data: PreparedData, colours: np.ndarray
) -> None:
    batch = _batch(base_config(training={"class_dropout": 0.0}), colour_data, 0, 100)
    mean = (batch.x0.mean((2, 3)).numpy() + 1) * 127.5
    nearest = np.linalg.norm(mean[:, None] - colours[None].astype(float), axis=-1).argmin(1)
    assert batch.labels is not None
    assert np.array_equal(batch.labels.numpy(), nearest)
    assert set(batch.labels.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_class_dropout_drops_its_share(share: float, base_config: Configure, colour_data: PreparedData) -> None:
    config = base_config(training={"class_dropout": share})
    labels = _batch(config, colour_data, 0, 4000).labels
    full = _batch(base_config(training={"class_dropout": 0.0}), colour_data, 0, 4000).labels
    assert labels is not None
    assert full is not None
    dropped = labels == -1
    assert abs(float(dropped.float().mean()) - share) < 4 * (share * (1 - share) / 4000) ** 0.5 + 1e-9
    assert torch.equal(labels[~dropped], full[~dropped])


def test_times_and_noise_have_their_distributions(base_config: Configure, colour_data: PreparedData) -> None:
    batch = _batch(base_config(), colour_data, 0, 4000)
    steps = (batch.times * 40).round().long()
    assert torch.equal(steps.double() / 40, batch.times)
    counts = torch.bincount(steps, minlength=41)
    assert counts[0] == 0
    assert counts[1:].min() > 60  # 100 expected of each
    assert abs(float(batch.noise.mean())) < 0.01
    assert abs(float(batch.noise.std()) - 1) < 0.01


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"channels": 1}, ["channels", "stage has 1", "data 3"]),
        ({"classes": 5}, ["classes", "stage has 5", "data 4"]),
    ],
)
def test_data_that_does_not_fit_is_refused(
    changes: dict[str, Any], words: list[str], base_config: Configure, colour_data: PreparedData
) -> None:
    with pytest.raises(UserError) as caught:
        BatchSource(base_config(**changes), colour_data, CPU)
    assert all(word in str(caught.value) for word in words), caught.value


def test_data_without_classes_is_refused(base_config: Configure, grey_data: PreparedData) -> None:
    with pytest.raises(UserError, match=r"classes: the stage has 4, the data none"):
        BatchSource(base_config(channels=1), grey_data, CPU)


def test_data_without_a_resolution_is_refused(sr_config: Configure, colour_data: PreparedData) -> None:
    with pytest.raises(UserError, match=r"resolution 64; it has 4, 8, 16, 32"):
        BatchSource(sr_config(64, low=16), colour_data, CPU)
    with pytest.raises(UserError, match=r"resolution 2; it has 4, 8, 16, 32"):
        BatchSource(sr_config(16, low=2), colour_data, CPU)
