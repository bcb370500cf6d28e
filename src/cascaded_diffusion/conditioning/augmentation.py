r"""Conditioning augmentation: damaging the low-resolution input of an SR stage (CDM, 2106.15282, section 3).

A super-resolution (SR) stage is trained on real low-resolution images but sampled on generated ones. Damaging its input
in training makes it forgive the mistakes of the stage before:

- ``gaussian``: :math:`z_s = \sqrt{\bar\alpha(s)}\,z_0 + \sqrt{1-\bar\alpha(s)}\,\epsilon`, with the low-resolution
  stage's own schedule, before up-sampling. s is drawn for every example and told to the network, so that one network
  serves all s and the best is chosen after training (the paper's "amortized" augmentation).
- ``blur``: a 3x3 Gaussian filter on half of the examples, in training only. With ``blur_too`` a gaussian stage is
  blurred so before it is noised.
- ``none``: nothing.

Training and sampling both come here, so that what the network sees is made by the same code.

At sampling a gaussian stage has three modes. ``truncated``: the stage below stopped at s and z_s is its output (section
3.2). ``nontruncated``: the stage below finished and z_0 is noised to s (section 3.3). ``none``: z_0 as it is, s = 0.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.diffusion.process import per_image, q_sample
from cascaded_diffusion.diffusion.schedule import Schedule, ScheduleConfig
from cascaded_diffusion.randomness import normal, uniform

__all__ = [
    "SAMPLING_MODES",
    "AugmentationMode",
    "ConditionedImage",
    "ConditioningConfig",
    "augment_for_training",
    "blur_3x3",
    "condition_for_sampling",
    "diffuse_to",
    "draw_blur",
    "draw_s",
    "gaussian_taps",
]

AugmentationMode = Literal["truncated", "nontruncated", "none"]
SAMPLING_MODES: tuple[AugmentationMode, ...] = ("truncated", "nontruncated", "none")
_Sigma = Annotated[float, Field(gt=0, le=100)]


class ConditioningConfig(StrictModel):
    """How the low-resolution image enters an SR stage."""

    augmentation: Literal["gaussian", "blur", "none"] = Field(
        default="gaussian",
        description="Damage in training: gaussian noise (low resolutions), blur (for 128 pixels and more), none.",
    )
    s_max: float = Field(default=1.0, gt=0, le=1, description="gaussian: s is drawn from U[0, s_max]; 1 in the paper.")
    p_clean: float = Field(
        default=0.0, ge=0, le=1, description="gaussian: share of examples with s exactly 0; 0 in the paper."
    )
    blur_too: bool = Field(
        default=False,
        description="gaussian: blur as for augmentation: blur before the noise; s at every stage is Imagen's "
        "(2205.11487), blur at high resolutions the paper's.",
    )
    blur_kernel: Literal[3] = Field(default=3, description="blur: width of the filter in pixels; the paper's is 3.")
    blur_sigma: tuple[_Sigma, _Sigma] = Field(
        default=(0.4, 0.6),
        description="blur: sigma in low-resolution pixels is drawn from this range; the paper's best.",
    )
    blur_probability: float = Field(
        default=0.5, ge=0, le=1, description="blur: share of the examples that are blurred."
    )
    upsample: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="Enlargement before concatenation, half-pixel centres; the paper names both."
    )
    low_resolution: int | None = Field(
        default=None, ge=1, le=4096, description="Resolution of the stage below; filled in from the recipe."
    )
    low_schedule: ScheduleConfig | None = Field(
        default=None,
        description="gaussian: the schedule that s refers to, the stage below's; filled in from the recipe.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.blur_too and self.augmentation != "gaussian":
            raise ValueError(f"blur_too: true needs augmentation: gaussian, not {self.augmentation}; allowed: false")
        blurs = self.blur_too or self.augmentation == "blur"
        if blurs and self.low_resolution is not None and self.low_resolution < 2:
            raise ValueError(f"low_resolution: {self.low_resolution} pixel cannot be blurred; allowed from 2")
        low, high = self.blur_sigma
        if low > high:
            raise ValueError(f"blur_sigma: [{low:g}, {high:g}] is not a range; allowed: lowest first")
        return self


class ConditionedImage(NamedTuple):
    """The low-resolution image (N, C, r, r) as the network gets it, and s (N,) if the network is told it."""

    image: Tensor
    s: Tensor | None


def draw_s(config: ConditioningConfig, schedule: Schedule, seed: int, index: Tensor) -> Tensor:
    """s of every training example: float64 (N,), U[0, s_max] on the schedule's grid, or 0 with probability p_clean."""
    s = uniform(seed, "augmentation/s", index) * config.s_max
    clean = uniform(seed, "augmentation/clean", index) < config.p_clean
    return schedule.snap(torch.where(clean, torch.zeros_like(s), s))


def diffuse_to(z0: Tensor, s: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """z_s ~ q(z_s | z_0) for each example; bit-equal to z_0 where s is 0.

    Args:
        z0: (N, C, r, r) in [-1, 1].
        s: (N,) in [0, 1].
        noise: standard normal, of z0's shape.
        schedule: the low-resolution stage's.
    """
    return q_sample(z0, noise, per_image(schedule.alpha_bar(s), z0))


def gaussian_taps(sigma: Tensor) -> Tensor:
    """One-dimensional 3-tap Gaussian filters, each summing to 1, (0, 1, 0) for sigma 0: (N,) -> (N, 3)."""
    side = torch.exp(-0.5 / sigma**2)
    return torch.stack([side, torch.ones_like(side), side], dim=1) / (1 + 2 * side)[:, None]


def blur_3x3(z: Tensor, sigma: Tensor) -> Tensor:
    """Filter each image with its own 3x3 Gaussian (borders reflected); sigma = 0 leaves an image bit-equal.

    Args:
        z: (N, C, r, r), r >= 2.
        sigma: (N,) in pixels, 0 for no blur.
    """
    taps = gaussian_taps(sigma).to(z)
    n, channels = z.shape[:2]
    weight = (taps[:, :, None] * taps[:, None, :]).repeat_interleave(channels, dim=0)[:, None]
    padded = functional.pad(z, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[None]
    blurred = functional.conv2d(padded, weight, groups=n * channels).reshape(z.shape)
    return torch.where(per_image(sigma, z).to(z.device) > 0, blurred, z)


def draw_blur(config: ConditioningConfig, seed: int, index: Tensor) -> Tensor:
    """Sigma of every training example, 0 for those that stay clean: float64 (N,)."""
    low, high = config.blur_sigma
    sigma = low + (high - low) * uniform(seed, "augmentation/sigma", index)
    blurred = uniform(seed, "augmentation/blur", index) < config.blur_probability
    return torch.where(blurred, sigma, torch.zeros_like(sigma))


def augment_for_training(
    config: ConditioningConfig, schedule: Schedule | None, z0: Tensor, seed: int, index: Tensor
) -> ConditionedImage:
    """Damage real low-resolution images as the configuration says.

    Args:
        config: the SR stage's.
        schedule: the low-resolution stage's, for ``gaussian``.
        z0: (N, C, r, r) in [-1, 1].
        seed: the run's.
        index: int64 (N,), global training image indices on the CPU.
    """
    if config.augmentation == "blur":
        return ConditionedImage(blur_3x3(z0, draw_blur(config, seed, index).to(z0)), None)
    if config.augmentation == "none":
        return ConditionedImage(z0, None)
    if schedule is None:
        raise ValueError("gaussian augmentation needs the low-resolution stage's schedule")
    if config.blur_too:
        z0 = blur_3x3(z0, draw_blur(config, seed, index).to(z0))
    s = draw_s(config, schedule, seed, index)
    noise = normal(seed, "augmentation/noise", index.to(z0.device), z0.shape[1:])
    return ConditionedImage(diffuse_to(z0, s, noise, schedule), s.to(z0))


def condition_for_sampling(
    config: ConditioningConfig,
    schedule: Schedule | None,
    low_res: Tensor,
    *,
    mode: AugmentationMode,
    s: float,
    noise: Tensor | None,
) -> ConditionedImage:
    """The conditioning input at sampling.

    Args:
        config: the SR stage's.
        schedule: the low-resolution stage's, for ``gaussian``.
        low_res: (N, C, r, r): z_s itself if ``mode`` is ``truncated``, z_0 otherwise.
        mode: see the module's text; blur and unaugmented stages know only ``none``.
        s: strength in [0, s_max]; must be 0 for ``none``.
        noise: standard normal of low_res' shape, for ``nontruncated``.

    Raises:
        ValueError: a mode or an s that the stage was not trained for, or something it needs is missing.
    """
    if mode == "none" and s != 0:
        raise ValueError(f"augmentation none means s = 0, not {s}")
    if config.augmentation != "gaussian":
        if mode != "none":
            raise ValueError(f"augmentation {mode} needs a stage trained with gaussian, not {config.augmentation}")
        return ConditionedImage(low_res, None)
    if schedule is None:
        raise ValueError("gaussian augmentation needs the low-resolution stage's schedule")
    if not 0 <= s <= config.s_max:
        raise ValueError(f"s: {s} is not in [0, {config.s_max:g}], the range that the stage was trained for")
    snapped = schedule.snap(torch.full((low_res.shape[0],), float(s), dtype=torch.float64))
    if mode == "nontruncated":
        if noise is None:
            raise ValueError("nontruncated augmentation needs noise")
        low_res = diffuse_to(low_res, snapped, noise, schedule)
    return ConditionedImage(low_res, snapped.to(low_res))
