"""Conditioning augmentation: what the SR network sees in training, and that it sees the same at sampling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cascaded_diffusion.conditioning.augmentation import (
    SAMPLING_MODES,
    AugmentationMode,
    ConditioningConfig,
    augment_for_training,
    blur_3x3,
    condition_for_sampling,
    diffuse_to,
    draw_blur,
    draw_s,
    gaussian_taps,
)
from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.process import noise_from_image
from cascaded_diffusion.diffusion.samplers import SAMPLERS, Prediction
from cascaded_diffusion.diffusion.schedule import Level, Schedule, ScheduleConfig
from cascaded_diffusion.randomness import normal

DISCRETE = Schedule(ScheduleConfig(timesteps=4000))
CONTINUOUS = Schedule(ScheduleConfig(timesteps=None))


def _config(**values: Any) -> ConditioningConfig:
    return ConditioningConfig(**values)


def _images(n: int, channels: int = 3, size: int = 6, *, like: int | None = None) -> Tensor:
    """n uniform images in [-1, 1]; with ``like`` all of them that same one."""
    generator = torch.Generator().manual_seed(0 if like is None else like)
    images = torch.rand(n if like is None else 1, channels, size, size, generator=generator) * 2 - 1
    return images.expand(n, -1, -1, -1).contiguous()


def _train(
    config: ConditioningConfig, z0: Tensor, index: Tensor, schedule: Schedule = DISCRETE
) -> tuple[Tensor, Tensor]:
    image, s = augment_for_training(config, schedule, z0, 7, index)
    assert s is not None
    return image, s


# ---- gaussian, in training


@pytest.mark.parametrize("s_max", [1.0, 0.4])
def test_s_is_uniform_up_to_s_max_on_the_schedules_grid(s_max: float) -> None:
    n = 20_000
    s = draw_s(_config(s_max=s_max), DISCRETE, 0, torch.arange(n))
    assert s.dtype == torch.float64
    assert s.min() >= 0
    assert s.max() <= s_max
    share = torch.histc(s, 10, 0, s_max) / n
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / n)
    assert torch.equal(torch.round(s * 4000) / 4000, s)
    continuous = draw_s(_config(s_max=s_max), CONTINUOUS, 0, torch.arange(n))
    assert (s - continuous).abs().max() <= 0.5 / 4000 + 1e-12
    assert not torch.equal(s, continuous)


@pytest.mark.parametrize("p_clean", [0.0, 0.05, 0.5, 1.0])
def test_the_asked_share_is_exactly_clean(p_clean: float) -> None:
    n = 20_000
    s = draw_s(_config(p_clean=p_clean), CONTINUOUS, 0, torch.arange(n))
    assert abs(float((s == 0).double().mean()) - p_clean) <= 5 * math.sqrt(p_clean * (1 - p_clean) / n)
    if 0 < p_clean < 1:
        # Which ones are clean says nothing of s: the others keep those that they would have had, over the whole range.
        others = s > 0
        assert torch.equal(s[others], draw_s(_config(), CONTINUOUS, 0, torch.arange(n))[others])
        assert abs(float(s[others].mean()) - 0.5) < 5 * math.sqrt(1 / 12 / int(others.sum()))


def test_s_is_drawn_for_every_example_and_told_to_the_network() -> None:
    z0 = _images(16, like=3)
    image, s = _train(_config(), z0, torch.arange(16))
    assert s.shape == (16,)
    assert s.dtype == z0.dtype
    assert len(s.unique()) == 16
    # The noise in each image is as strong as the s that is told of it.
    noise = normal(7, "augmentation/noise", torch.arange(16), z0.shape[1:])
    alpha_bar = DISCRETE.alpha_bar(s.double()).reshape(-1, 1, 1, 1)
    expected = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(image.double(), expected, rtol=0, atol=1e-6)


def test_clean_examples_are_bit_equal_and_others_are_not() -> None:
    z0 = _images(64)
    image, s = _train(_config(p_clean=0.5), z0, torch.arange(64))
    for i in range(64):
        assert torch.equal(image[i], z0[i]) == (s[i] == 0)
    assert 0 < int((s == 0).sum()) < 64


@pytest.mark.parametrize("s", [0.0, 1 / 4000, 0.125, 0.5, 1.0])
def test_z_s_has_the_moments_of_q(s: float) -> None:
    """N(sqrt(alpha_bar) z_0, (1 - alpha_bar) I), within five standard errors."""
    n = 4000
    z0 = _images(n, 1, 3, like=5)
    noise = normal(0, "test", torch.arange(n), z0.shape[1:])
    z = diffuse_to(z0, torch.full((n,), s, dtype=torch.float64), noise, DISCRETE).double()
    alpha_bar = DISCRETE.level(s).alpha_bar
    mean, variance = z.mean(dim=0), z.var(dim=0)
    assert ((mean - math.sqrt(alpha_bar) * z0[0]).abs() <= 5 * math.sqrt((1 - alpha_bar) / n) + 1e-6).all()
    assert ((variance - (1 - alpha_bar)).abs() <= 5 * (1 - alpha_bar) * math.sqrt(2 / n) + 1e-12).all()
    if s == 0:
        assert torch.equal(z, z0.double())


# ---- training and sampling see the same


@pytest.mark.parametrize("schedule", [DISCRETE, CONTINUOUS, Schedule(ScheduleConfig(timesteps=50))])
@pytest.mark.parametrize("mode", ["nontruncated", "none"])
def test_sampling_gives_the_network_what_training_gave_it(schedule: Schedule, mode: AugmentationMode) -> None:
    """On real images: with training's s and noise the input is training's, to the bit, and so is the s that is told."""
    config = _config(p_clean=1.0 if mode == "none" else 0.0)
    z0, index = _images(8), torch.arange(8)
    image, s = _train(config, z0, index, schedule)
    noise = normal(7, "augmentation/noise", index, z0.shape[1:])
    for i, strength in enumerate(draw_s(config, schedule, 7, index).tolist()):
        one = slice(i, i + 1)
        sampled = condition_for_sampling(config, schedule, z0[one], mode=mode, s=strength, noise=noise[one])
        assert torch.equal(sampled.image, image[one])
        assert sampled.s is not None
        assert torch.equal(sampled.s, s[one])
        assert sampled.s.dtype == s.dtype


@pytest.mark.parametrize("s", [0.0, 0.125, 0.5, 1.0])
def test_nontruncated_sampling_has_trainings_moments_at_that_s(s: float) -> None:
    n = 4000
    z0 = _images(n, 1, 3, like=5)
    sampled = condition_for_sampling(
        _config(), DISCRETE, z0, mode="nontruncated", s=s, noise=normal(0, "other", torch.arange(n), z0.shape[1:])
    )
    # Training at that s alone: the draw is replaced by the number, the rest is what augment_for_training does.
    trained = diffuse_to(
        z0,
        torch.full((n,), s, dtype=torch.float64),
        normal(7, "augmentation/noise", torch.arange(n), z0.shape[1:]),
        DISCRETE,
    )
    spread = math.sqrt(1 - DISCRETE.level(s).alpha_bar)
    difference = sampled.image.double().mean(dim=0) - trained.double().mean(dim=0)
    assert (difference.abs() <= 5 * spread * math.sqrt(2 / n) + 1e-7).all()
    ratio = sampled.image.double().std(dim=0) / trained.double().std(dim=0) if s else torch.ones(1)
    assert ((ratio - 1).abs() < 5 / math.sqrt(n)).all()
    assert sampled.s is not None
    assert torch.equal(sampled.s, torch.full((n,), s))


def test_s_between_steps_is_told_as_the_step_that_it_means() -> None:
    schedule = Schedule(ScheduleConfig(timesteps=10))
    z0 = _images(2)
    for mode in ("nontruncated", "truncated"):
        told = condition_for_sampling(_config(), schedule, z0, mode=mode, s=0.33, noise=torch.zeros_like(z0)).s
        assert told is not None
        assert told.tolist() == pytest.approx([0.3, 0.3])


def test_truncated_sampling_hands_z_s_on_as_it_is() -> None:
    z_s = 3 * _images(4)
    sampled = condition_for_sampling(_config(), DISCRETE, z_s, mode="truncated", s=0.25, noise=None)
    assert torch.equal(sampled.image, z_s)
    assert sampled.s is not None
    assert sampled.s.tolist() == [0.25] * 4


ALL_SCHEDULES = [
    DISCRETE,
    CONTINUOUS,
    Schedule(ScheduleConfig(kind="linear", timesteps=1000)),
    Schedule(ScheduleConfig(timesteps=30, continuous=True)),
    Schedule(ScheduleConfig(timesteps=50, log_snr_shift=-1.5)),
]


@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=lambda schedule: schedule.config.describe())
@pytest.mark.parametrize("s", [0.0, 0.013, 0.125, 0.33, 0.5, 1.0])
def test_the_stage_below_stops_at_the_noise_that_is_put_on_a_finished_image(schedule: Schedule, s: float) -> None:
    """The level at which truncated sampling ends, read off what nontruncated makes of a flat image, and s as told."""
    end = sampling_grid(schedule, 7, stop=s)[-1]
    z0, noise = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2)
    flat = condition_for_sampling(_config(), schedule, z0, mode="nontruncated", s=s, noise=noise)
    assert float((flat.image / z0).mean()) == pytest.approx(math.sqrt(end.alpha_bar), abs=1e-7)
    spread = condition_for_sampling(_config(), schedule, 0 * z0, mode="nontruncated", s=s, noise=noise + 1)
    assert float(spread.image.mean()) == pytest.approx(math.sqrt(1 - end.alpha_bar), abs=1e-7)
    handed_on = condition_for_sampling(_config(), schedule, z0, mode="truncated", s=s, noise=None)
    assert handed_on.s is not None
    assert flat.s is not None
    assert float(handed_on.s) == float(flat.s) == pytest.approx(end.time, abs=1e-7)


@pytest.mark.parametrize("schedule", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("s", [0.125, 0.5])
def test_truncated_sampling_hands_on_what_training_saw_at_that_s(name: str, schedule: Schedule, s: float) -> None:
    """Mean and variance of z_s from a stage below that knows the image, beside those of training's z_s of that image.

    Within five standard errors of 4000 images and, for the mean, the trace that pure noise has of no image.
    """
    n = 4000
    index = torch.arange(n)
    z0 = _images(n, 1, 3, like=5)

    def knows(x: Tensor, level: Level) -> Prediction:
        return Prediction(z0, noise_from_image(x, z0, level.alpha_bar))

    sampled = SAMPLERS[name](
        knows,
        normal(1, "below/init", index, z0.shape[1:]),
        sampling_grid(schedule, 20, stop=s),
        noise=lambda i: normal(1, "below/steps", index, z0.shape[1:], step=i),
    )
    told = condition_for_sampling(_config(), schedule, sampled, mode="truncated", s=s, noise=None)
    noise = normal(7, "augmentation/noise", index, z0.shape[1:])
    trained = diffuse_to(z0, torch.full((n,), s, dtype=torch.float64), noise, schedule)
    variance = 1 - schedule.level(s).alpha_bar
    difference = told.image.double().mean(dim=0) - trained.double().mean(dim=0)
    assert (difference.abs() <= 5 * math.sqrt(2 * variance / n) + 1e-4).all()
    ratio = told.image.double().var(dim=0) / trained.double().var(dim=0)
    assert ((ratio - 1).abs() < 5 * math.sqrt(4 / n)).all()


def test_no_augmentation_at_sampling_is_bit_equal_and_says_s_0() -> None:
    z0 = _images(4)
    sampled = condition_for_sampling(_config(), DISCRETE, z0, mode="none", s=0.0, noise=None)
    assert torch.equal(sampled.image, z0)
    assert sampled.s is not None
    assert sampled.s.tolist() == [0] * 4


# ---- blur


def _reference_blur(image: Tensor, sigma: float) -> Tensor:
    """One channel, pixel by pixel: a normalised 3x3 Gaussian, the border mirrored about the edge pixel."""
    size = image.shape[-1]
    weights = {(i, j): math.exp(-0.5 * (i * i + j * j) / sigma**2) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    total = sum(weights.values())

    def mirrored(place: int) -> int:
        return -place if place < 0 else 2 * (size - 1) - place if place >= size else place

    out = torch.empty_like(image, dtype=torch.float64)
    for y in range(size):
        for x in range(size):
            out[y, x] = sum(
                weight / total * float(image[mirrored(y + i), mirrored(x + j)]) for (i, j), weight in weights.items()
            )
    return out


@pytest.mark.parametrize("sigma, side, centre", [(0.4, 0.040, 0.919), (0.5, 0.107, 0.787), (0.6, 0.166, 0.667)])
def test_the_papers_taps(sigma: float, side: float, centre: float) -> None:
    taps = gaussian_taps(torch.tensor([sigma, sigma], dtype=torch.float64))
    assert taps.shape == (2, 3)
    assert taps[1].tolist() == pytest.approx([side, centre, side], abs=5.1e-4)
    assert float(taps[0].sum()) == pytest.approx(1, abs=1e-12)


def test_blur_filters_each_image_with_its_own_reference_kernel() -> None:
    z = _images(4, 2, 5)
    sigma = torch.tensor([0.4, 0.6, 0.0, 1.5])
    blurred = blur_3x3(z, sigma)
    for i, width in enumerate(sigma.tolist()):
        for channel in range(2):
            expected = _reference_blur(z[i, channel], width) if width else z[i, channel].double()
            torch.testing.assert_close(blurred[i, channel].double(), expected, rtol=0, atol=2e-6)
    assert torch.equal(blurred[2], z[2])


def test_blur_leaves_constants_and_other_channels_alone() -> None:
    z = torch.zeros(2, 3, 5, 5)
    z[0, 1] = 0.7
    z[1, 2, 2, 2] = 1.0
    blurred = blur_3x3(z, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(blurred[0], z[0])
    assert not blurred[1, :2].any()
    assert float(blurred[1].sum()) == pytest.approx(1)


def test_blur_works_on_the_smallest_image() -> None:
    z = _images(1, 1, 2)
    torch.testing.assert_close(blur_3x3(z, torch.tensor([0.5]))[0, 0].double(), _reference_blur(z[0, 0], 0.5))


def test_half_of_the_examples_stay_exactly_clean_and_the_others_are_filtered_on_their_own() -> None:
    n = 600
    config, index = _config(augmentation="blur"), torch.arange(n)
    z0 = _images(n, 1, 4)
    image, s = augment_for_training(config, None, z0, 7, index)
    assert s is None
    sigma = draw_blur(config, 7, index)
    clean = torch.tensor([torch.equal(a, b) for a, b in zip(image, z0, strict=True)])
    assert torch.equal(clean, sigma == 0)
    assert abs(float(clean.double().mean()) - 0.5) < 5 * math.sqrt(0.25 / n)
    widths = sigma[~clean]
    assert len(widths.unique()) == len(widths)
    for i in (~clean).nonzero().flatten().tolist()[:20]:
        torch.testing.assert_close(image[i, 0].double(), _reference_blur(z0[i, 0], float(sigma[i])), rtol=0, atol=2e-6)


def test_sigma_is_uniform_in_its_range() -> None:
    config = _config(augmentation="blur", blur_probability=1.0)
    sigma = draw_blur(config, 0, torch.arange(20_000))
    assert sigma.min() >= 0.4
    assert sigma.max() < 0.6
    share = torch.histc(sigma, 10, 0.4, 0.6) / len(sigma)
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / len(sigma))
    # Whether an example is blurred says nothing of how much it would be.
    some = draw_blur(_config(augmentation="blur"), 0, torch.arange(20_000))
    assert torch.equal(some[some > 0], sigma[some > 0])
    assert abs(float(some[some > 0].mean()) - 0.5) < 5 * 0.2 / math.sqrt(12 * 9000)
    assert not draw_blur(_config(augmentation="blur", blur_probability=0.0), 0, torch.arange(100)).any()


@pytest.mark.parametrize("augmentation", ["blur", "none"])
def test_stages_without_s_sample_from_the_image_itself(augmentation: str) -> None:
    z0 = _images(8)
    image, s = condition_for_sampling(_config(augmentation=augmentation), None, z0, mode="none", s=0.0, noise=None)
    assert torch.equal(image, z0)
    assert s is None


def test_without_augmentation_training_sees_the_image_itself() -> None:
    z0 = _images(4)
    image, s = augment_for_training(_config(augmentation="none"), None, z0, 0, torch.arange(4))
    assert torch.equal(image, z0)
    assert s is None


# ---- of seed and index alone


@pytest.mark.parametrize("values", [{}, {"p_clean": 0.3, "s_max": 0.6}, {"augmentation": "blur"}])
def test_a_batch_of_eight_is_two_batches_of_four(values: dict[str, Any]) -> None:
    config, z0 = _config(**values), _images(8)
    index = torch.arange(8) + 2**32 - 4
    whole = augment_for_training(config, DISCRETE, z0, 3, index)
    halves = [augment_for_training(config, DISCRETE, z0[part], 3, index[part]) for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(whole.image, torch.cat([half.image for half in halves]), rtol=0, atol=1e-6)
    if whole.s is not None:
        assert torch.equal(whole.s, torch.cat([half.s for half in halves if half.s is not None]))
    again = augment_for_training(config, DISCRETE, z0, 3, index)
    assert torch.equal(whole.image, again.image)
    other = augment_for_training(config, DISCRETE, z0, 4, index)
    assert not torch.equal(whole.image, other.image)


# ---- refusals


@pytest.mark.parametrize("augmentation", ["blur", "none"])
@pytest.mark.parametrize("mode", ["truncated", "nontruncated"])
def test_modes_that_need_gaussian_training_are_refused(augmentation: str, mode: AugmentationMode) -> None:
    with pytest.raises(
        ValueError, match=f"augmentation {mode} needs a stage trained with gaussian, not {augmentation}"
    ):
        condition_for_sampling(_config(augmentation=augmentation), DISCRETE, _images(1), mode=mode, s=0.1, noise=None)


@pytest.mark.parametrize("augmentation", ["gaussian", "blur", "none"])
def test_an_s_without_augmentation_is_refused(augmentation: str) -> None:
    with pytest.raises(ValueError, match=r"augmentation none means s = 0, not 0\.1"):
        condition_for_sampling(_config(augmentation=augmentation), DISCRETE, _images(1), mode="none", s=0.1, noise=None)


@pytest.mark.parametrize("s", [-0.1, 0.5, math.nan])
def test_an_s_beyond_training_is_refused(s: float) -> None:
    z0 = _images(1)
    with pytest.raises(ValueError, match=r"s: .* is not in \[0, 0\.4\]"):
        condition_for_sampling(_config(s_max=0.4), DISCRETE, z0, mode="nontruncated", s=s, noise=z0)


def test_what_is_missing_is_said() -> None:
    z0 = _images(1)
    with pytest.raises(ValueError, match="needs noise"):
        condition_for_sampling(_config(), DISCRETE, z0, mode="nontruncated", s=0.1, noise=None)
    with pytest.raises(ValueError, match="schedule"):
        condition_for_sampling(_config(), None, z0, mode="none", s=0.0, noise=None)
    with pytest.raises(ValueError, match="schedule"):
        augment_for_training(_config(), None, z0, 0, torch.arange(1))


@pytest.mark.parametrize("values", [
    {"s_max": 0.0}, {"s_max": 1.1}, {"p_clean": -0.1}, {"p_clean": 1.1}, {"blur_sigma": (0.6, 0.4)},
    {"blur_sigma": (0.0, 0.4)}, {"blur_kernel": 5}, {"blur_probability": 2.0}, {"augmentation": "noise"}, {"smax": 0.5},
    {"low_resolution": 0}, {"low_resolution": 4097}, {"low_resolution": 1, "augmentation": "blur"},
])  # fmt: skip
def test_configurations_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        _config(**values)


def test_the_ends_of_the_ranges_and_the_papers_filter() -> None:
    assert ConditioningConfig().blur_kernel == 3
    for side in (1, 4096):
        assert ConditioningConfig(low_resolution=side).low_resolution == side
    assert ConditioningConfig(blur_sigma=(0.5, 0.5)).blur_sigma == (0.5, 0.5)


def test_the_modes_are_named() -> None:
    assert SAMPLING_MODES == ("truncated", "nontruncated", "none")


def test_gaussian_noise_after_blur() -> None:
    """Both at once: the noise that s alone would bring, on what blur alone would leave."""
    z0, index = _images(64), torch.arange(64)
    image, s = _train(_config(blur_too=True), z0, index)
    alone, same_s = _train(_config(), z0, index)
    assert torch.equal(s, same_s)
    blurred = augment_for_training(_config(augmentation="blur"), None, z0, 7, index).image
    root = DISCRETE.alpha_bar(s.double()).sqrt().float()[:, None, None, None]
    torch.testing.assert_close(image - alone, root * (blurred - z0), rtol=1e-4, atol=1e-5)
    assert 20 < int(((image - alone).abs().amax(dim=(1, 2, 3)) > 1e-3).sum()) < 44
    with pytest.raises(ValidationError, match=r"blur_too: true needs augmentation: gaussian, not blur"):
        _config(augmentation="blur", blur_too=True)
