r"""The diffusion process in closed form: noising, the posterior, and what a network's output says about the image.

All functions are pure. Images have shape (N, C, H, W); ``alpha_bar`` is a float, or a tensor that broadcasts against
them (:func:`per_image` makes one from (N,)). A tensor may be float64 on the CPU, as schedules give it, whatever the
images are: coefficients are worked out in its own precision and only then take the images' type and device. In float32
:math:`1-\bar\alpha` near the image, and :math:`\beta` everywhere, would keep two to four digits.

Levels are named t (noisier) and s (cleaner), :math:`\bar\alpha_t < \bar\alpha_s`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "PredictionKind",
    "beta_between",
    "dynamic_threshold",
    "from_prediction",
    "learned_log_variance",
    "noise_from_image",
    "per_image",
    "posterior_mean",
    "posterior_variance",
    "prediction_target",
    "q_sample",
    "root",
    "scaled",
]

PredictionKind = Literal["eps", "x0", "v"]


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, 1, 1), to broadcast against ``like``; type and device stay."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def root(value: float | Tensor) -> float | Tensor:
    """The square root, in the value's own precision."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def scaled(coefficient: float | Tensor, x: Tensor) -> Tensor:
    """``coefficient * x`` in x's type, on its device."""
    if isinstance(coefficient, Tensor):
        coefficient = coefficient.to(device=x.device, dtype=x.dtype)
    return coefficient * x


def q_sample(x0: Tensor, noise: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """A sample of q(x_t | x_0) = N(sqrt(alpha_bar) x_0, (1 - alpha_bar) I): DDPM eq. 4."""
    return scaled(root(alpha_bar), x0) + scaled(root(1 - alpha_bar), noise)


def prediction_target(kind: PredictionKind, x0: Tensor, noise: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """What the network is trained to output; v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (2202.00512, eq. 12)."""
    if kind == "eps":
        return noise
    if kind == "x0":
        return x0
    return scaled(root(alpha_bar), noise) - scaled(root(1 - alpha_bar), x0)


def from_prediction(kind: PredictionKind, output: Tensor, x_t: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """The predicted x_0 that a network output stands for."""
    alpha, sigma = root(alpha_bar), root(1 - alpha_bar)
    if kind == "eps":
        return scaled(1 / alpha, x_t - scaled(sigma, output))
    if kind == "x0":
        return output
    return scaled(alpha, x_t) - scaled(sigma, output)


def noise_from_image(x_t: Tensor, x0: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """The eps for which q_sample(x_0, eps) = x_t: after clipping x_0, eps must be derived again (DDIM eq. 12)."""
    return scaled(1 / root(1 - alpha_bar), x_t - scaled(root(alpha_bar), x0))


def beta_between(alpha_bar_t: float | Tensor, alpha_bar_s: float | Tensor) -> float | Tensor:
    """beta of the one step from s to t, 1 - alpha_bar_t / alpha_bar_s; all that respacing needs (iDDPM eq. 19)."""
    return 1 - alpha_bar_t / alpha_bar_s


def posterior_mean(x0: Tensor, x_t: Tensor, alpha_bar_t: float | Tensor, alpha_bar_s: float | Tensor) -> Tensor:
    """Mean of q(x_s | x_t, x_0): DDPM eq. 7."""
    beta = beta_between(alpha_bar_t, alpha_bar_s)
    weight_0 = root(alpha_bar_s) * beta / (1 - alpha_bar_t)
    weight_t = root(1 - beta) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    return scaled(weight_0, x0) + scaled(weight_t, x_t)


def posterior_variance(alpha_bar_t: float | Tensor, alpha_bar_s: float | Tensor) -> float | Tensor:
    """Variance of q(x_s | x_t, x_0): DDPM eq. 7. It is 0 where s is the clean image."""
    return beta_between(alpha_bar_t, alpha_bar_s) * (1 - alpha_bar_s) / (1 - alpha_bar_t)


def learned_log_variance(v: Tensor, log_beta: float | Tensor, log_posterior: float | Tensor) -> Tensor:
    """Interpolate between the two fixed log-variances, v = -1 giving the posterior's and v = 1 beta's: iDDPM eq. 15."""
    share = (v + 1) / 2
    return share * log_beta + (1 - share) * log_posterior


def dynamic_threshold(x0: Tensor, percentile: float) -> Tensor:
    """Clip each image to its own percentile of |x_0| and scale back to [-1, 1]: Imagen (2205.11487), section 2.3."""
    limit = torch.quantile(x0.flatten(1).abs().float(), percentile, dim=1).clamp(min=1)
    limit = per_image(limit, x0).to(x0.dtype)
    return torch.clamp(x0, -limit, limit) / limit
