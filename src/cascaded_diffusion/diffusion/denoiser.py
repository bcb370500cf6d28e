"""From a network to a denoiser and to a training loss: the one place where both read the same configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.diffusion.levels import LogNormalLevels, log_sigma
from cascaded_diffusion.diffusion.losses import (
    hybrid_loss,
    min_snr_weight,
    sigmoid_weight,
    simple_loss,
    variational_bound,
)
from cascaded_diffusion.diffusion.preconditioning import edm_image, edm_input, edm_target
from cascaded_diffusion.diffusion.process import (
    PredictionKind,
    beta_between,
    dynamic_threshold,
    from_prediction,
    noise_from_image,
    per_image,
    posterior_variance,
    prediction_target,
    q_sample,
)
from cascaded_diffusion.diffusion.samplers import Denoiser, Prediction, VarianceKind
from cascaded_diffusion.diffusion.schedule import Level, Schedule, ScheduleConfig

__all__ = ["Diffusion", "DiffusionConfig", "NetworkCall", "clipped_denoiser"]

NetworkCall = Callable[[Tensor, Tensor], Tensor]
"""The network with its conditions filled in: (x, time input (N,)) -> output."""


class DiffusionConfig(StrictModel):
    """One stage's diffusion process and what its network predicts."""

    noise_schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="The noise schedule.")
    prediction: PredictionKind | Literal["edm"] = Field(
        default="eps", description="What the network outputs: eps, x0, v, or EDM's preconditioned mix (2206.00364)."
    )
    sigma_data: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="prediction: edm: sigma_data, the root mean square of the images' values in [-1, 1]; default EDM's "
        "0.5, which is their standard deviation where they are grey in the mean.",
    )
    variance: VarianceKind = Field(
        default="posterior",
        description="Variance of an ancestral step: beta, posterior, or learned between the two with the hybrid loss.",
    )
    log_normal: LogNormalLevels | None = Field(
        default=None,
        description="Train on noise levels with a log-normal sigma (EDM, 2206.00364); null: times are uniform.",
    )
    noise_embedding: Literal["step", "sqrt-alpha-bar", "angle", "log-sigma"] | None = Field(
        default=None,
        description="What the network is told of the noise: the step (scaled to 0..1000), 1000 sqrt(alpha_bar) "
        "(WaveGrad), the angle of (signal, noise) as a share of 90 degrees, times 1000, or log-sigma, 50 (ln(sigma) "
        "+ 10), which is EDM's c_noise on that scale. Default: log-sigma for edm, else step if discrete, else "
        "sqrt-alpha-bar.",
    )
    rescale_steps: bool = Field(
        default=True,
        description="Embed step t as t 1000/T; false feeds t itself, as guided-diffusion's published models do.",
    )
    min_snr_gamma: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Weight the loss so that the squared error of x_0 counts min(SNR, gamma), which for eps is "
        "min(SNR, gamma) / SNR (2303.09556); null: no weighting.",
    )

    sigmoid_bias: float | None = Field(
        default=None,
        ge=-20,
        le=20,
        description="Weight the eps loss per log SNR by sigmoid(bias - log SNR) (2303.00848; SiD2, 2410.19324), "
        "whatever the levels drawn; null: no weighting.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_combinations()
        if self.noise_schedule.is_continuous:
            if self.noise_embedding == "step":
                raise ValueError(
                    "noise_embedding: step needs a discrete schedule; allowed here: sqrt-alpha-bar, angle, log-sigma"
                )
            if self.variance == "learned":
                raise ValueError("variance: learned needs a discrete schedule; allowed here: beta, posterior")
        if self.variance == "learned" and self.noise_schedule.timesteps == 1:
            raise ValueError("variance: learned needs at least 2 timesteps, got 1; allowed here: beta, posterior")
        if self.variance == "learned" and self.min_snr_gamma is not None:
            raise ValueError(
                f"min_snr_gamma: {self.min_snr_gamma:g} does not go with variance: learned, whose hybrid loss has a "
                "weight of its own; allowed: null"
            )
        return self

    def _check_combinations(self) -> None:
        if self.sigma_data is not None and self.prediction != "edm":
            raise ValueError(f"sigma_data: {self.sigma_data:g} needs prediction: edm, not {self.prediction}")
        if self.variance == "learned":
            for key, value in (("log_normal", self.log_normal), ("sigmoid_bias", self.sigmoid_bias)):
                if value is not None:
                    raise ValueError(f"{key}: the bound of variance: learned needs uniform times; allowed: null")
            if self.prediction == "edm":
                raise ValueError("prediction: edm does not go with variance: learned; allowed: eps, x0, v")
        if self.sigmoid_bias is not None and self.min_snr_gamma is not None:
            raise ValueError(f"sigmoid_bias: {self.sigmoid_bias:g} does not go with min_snr_gamma; choose one weight")
        if self.sigmoid_bias is not None and not self.noise_schedule.is_continuous:
            raise ValueError(f"sigmoid_bias: {self.sigmoid_bias:g} needs a continuous noise_schedule")


class Diffusion:
    """A stage's diffusion process: draws noise levels, trains, and turns a network into a denoiser.

    Attributes:
        config: what it was built from.
        schedule: the noise schedule.
        embedding: what tells the network of the noise level, the default settled.
        sigma_data: EDM's root mean square of the images, the default settled.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.schedule = Schedule(config.noise_schedule)
        default = "sqrt-alpha-bar" if config.noise_schedule.is_continuous else "step"
        self.embedding = config.noise_embedding or ("log-sigma" if config.prediction == "edm" else default)
        self.sigma_data = 0.5 if config.sigma_data is None else config.sigma_data

    @property
    def learns_variance(self) -> bool:
        """Whether the network has a second set of output channels for the variance."""
        return self.config.variance == "learned"

    def time_input(self, time: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network's sinusoidal embedding sees, on a scale of 0..1000 (0..T-1 unscaled): float32 (N,)."""
        if self.embedding == "sqrt-alpha-bar":
            value = 1000 * alpha_bar.sqrt()
        elif self.embedding == "angle":
            value = 1000 * (2 / np.pi) * torch.arccos(alpha_bar.sqrt().clamp(max=1))
        elif self.embedding == "log-sigma":
            value = 50 * (log_sigma(alpha_bar) + 10)
        else:
            timesteps = self.schedule.timesteps
            assert timesteps is not None  # guaranteed by DiffusionConfig
            # guided-diffusion and DDPM count steps from 0.
            value = torch.round(time * timesteps) - 1
            if self.config.rescale_steps:
                value = value * (1000 / timesteps)
        return value.to(torch.float32)

    def draw_times(self, u: Tensor) -> Tensor:
        """Training times from uniforms in [0, 1): {1..T}/T if discrete, else (0, 1]: float64 (N,)."""
        if self.config.log_normal is not None:
            return self.config.log_normal.times(u, self.schedule)
        timesteps = self.schedule.timesteps
        if timesteps is None:
            return 1 - u.to(torch.float64)
        return (torch.floor(u.to(torch.float64) * timesteps) + 1) / timesteps

    def training_loss(self, network: NetworkCall, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The loss of each example: float32 (N,).

        Args:
            network: with its conditions filled in.
            x0: (N, C, H, W) in [-1, 1].
            noise: standard normal, of x0's shape.
            times: (N,) from :meth:`draw_times`, on the CPU.
        """
        alpha_bar = self.schedule.alpha_bar(times)
        ab = per_image(alpha_bar, x0)
        x_t = q_sample(x0, noise, ab)
        output = network(self._input(x_t, ab), self.time_input(times, alpha_bar).to(x0.device)).float()
        prediction, variance = self._split(output, x0.shape[1])
        loss = simple_loss(prediction, self._target(x0, noise, ab))
        if self.config.min_snr_gamma is not None:
            kind, gamma = self.config.prediction, self.config.min_snr_gamma
            loss = loss * min_snr_weight(kind, alpha_bar, gamma, self.sigma_data).to(loss)
        if self.config.sigmoid_bias is not None:
            loss = loss * self._sigmoid_weight(times, alpha_bar).to(loss)
        if variance is not None:
            timesteps = self.schedule.timesteps
            assert timesteps is not None
            loss = hybrid_loss(loss, self.bound(x0, x_t, prediction, variance, times), timesteps)
        return loss

    def bound(self, x0: Tensor, x_t: Tensor, prediction: Tensor, variance: Tensor, times: Tensor) -> Tensor:
        """One step's variational term for a learned variance, bits per dimension: (N,). Discrete schedules only."""
        table = self.schedule.alphas_cumprod
        if table is None or self.schedule.timesteps is None:
            raise ValueError("the variational bound needs a discrete schedule")
        k = torch.round(times.cpu() * len(table)).to(torch.int64)
        ab = torch.cat([torch.ones(1, dtype=torch.float64), torch.from_numpy(table)])
        beta = torch.as_tensor(beta_between(ab[1:], ab[:-1]))
        posterior = torch.as_tensor(posterior_variance(ab[1:], ab[:-1]))
        # The first step's posterior variance is 0; its logarithm is replaced by the second's (iDDPM section 3.1).
        posterior = torch.cat([posterior[1:2], posterior[1:]])

        def pick(values: Tensor, at: Tensor) -> Tensor:
            return per_image(values[at], x0)

        def pick_log(values: Tensor) -> Tensor:
            return pick(values.log(), k - 1).to(x0)

        alpha_bar_t = pick(ab, k)
        return variational_bound(
            x0=x0,
            x_t=x_t,
            predicted_x0=self._image(prediction, x_t, alpha_bar_t),
            variance_output=variance,
            alpha_bar_t=alpha_bar_t,
            alpha_bar_s=pick(ab, k - 1),
            log_beta=pick_log(beta),
            log_posterior=pick_log(posterior),
            first=(k == 1).to(x0.device),
        )

    def predict(self, network: NetworkCall, x: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        """The network's x_0 at a level, not clipped, and its raw variance if it learns one."""
        ones = torch.ones(x.shape[0], dtype=torch.float64)
        time_input = self.time_input(ones * level.time, ones * level.alpha_bar).to(x.device)
        output = network(self._input(x, level.alpha_bar), time_input).float()
        prediction, variance = self._split(output, x.shape[1])
        return self._image(prediction, x, level.alpha_bar), variance

    def denoiser(self, network: NetworkCall, *, clip: bool = True, percentile: float | None = None) -> Denoiser:
        """Wrap a network, its conditions (and guidance) filled in, for the samplers.

        Args:
            network: (x, time input) -> output.
            clip: clip the predicted x_0 to [-1, 1].
            percentile: dynamic thresholding in place of the clip, e.g. 0.995 (2205.11487).
        """
        return clipped_denoiser(lambda x, level: self.predict(network, x, level), clip=clip, percentile=percentile)

    def _input(self, x: Tensor, alpha_bar: float | Tensor) -> Tensor:
        return edm_input(x, alpha_bar, self.sigma_data) if self.config.prediction == "edm" else x

    def _target(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        if self.config.prediction == "edm":
            return edm_target(x0, noise, alpha_bar, self.sigma_data)
        return prediction_target(self.config.prediction, x0, noise, alpha_bar)

    def _image(self, output: Tensor, x: Tensor, alpha_bar: float | Tensor) -> Tensor:
        if self.config.prediction == "edm":
            return edm_image(output, x, alpha_bar, self.sigma_data)
        return from_prediction(self.config.prediction, output, x, alpha_bar)

    def _sigmoid_weight(self, times: Tensor, alpha_bar: Tensor) -> Tensor:
        assert self.config.sigmoid_bias is not None
        log_normal = self.config.log_normal
        if log_normal is None:
            density = 1 / self.schedule.log_snr_slope(times)
        else:
            z = (log_sigma(alpha_bar) - log_normal.p_mean) / log_normal.p_std
            # Of log SNR, which is twice as wide as ln(sigma).
            density = torch.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * 2 * log_normal.p_std)
        return sigmoid_weight(self.config.prediction, alpha_bar, self.config.sigmoid_bias, self.sigma_data) / density

    def _split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        if not self.learns_variance:
            return output, None
        prediction, variance = output.split(channels, dim=1)
        return prediction, variance


def clipped_denoiser(
    predict: Callable[[Tensor, Level], tuple[Tensor, Tensor | None]], *, clip: bool, percentile: float | None
) -> Denoiser:
    """A denoiser from what predicts x_0 (and a raw variance), as :meth:`Diffusion.predict` does; arguments as there."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        x0, variance = predict(x, level)
        if percentile is not None:
            x0 = dynamic_threshold(x0, percentile)
        elif clip:
            x0 = x0.clamp(-1, 1)
        return Prediction(x0, noise_from_image(x, x0, level.alpha_bar), variance)

    return denoise
