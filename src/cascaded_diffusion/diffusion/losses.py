"""Training losses, one value per example.

The simple loss is DDPM's eq. 14; the hybrid loss L_simple + 0.001 L_vlb, for networks that also learn the variance, is
iDDPM's eq. 16. Published code for the latter weighs the whole bound, the sum over T steps: one drawn step stands for T.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cascaded_diffusion.diffusion.process import PredictionKind, learned_log_variance, posterior_mean

__all__ = [
    "decoder_log_likelihood",
    "hybrid_loss",
    "mean_per_image",
    "min_snr_weight",
    "normal_kl",
    "sigmoid_weight",
    "simple_loss",
    "variational_bound",
]

VLB_WEIGHT = 0.001


def mean_per_image(x: Tensor) -> Tensor:
    """Mean over everything but the first dimension: (N,)."""
    return x.flatten(1).mean(dim=1)


def simple_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each example: (N,), in float32 whatever the network computed in."""
    return mean_per_image((output.float() - target.float()) ** 2)


def min_snr_weight(
    kind: PredictionKind | Literal["edm"], alpha_bar: Tensor, gamma: float, sigma_data: float = 0.5
) -> Tensor:
    """Weight of the simple loss that makes x_0's loss weight min(SNR, gamma): min-SNR (2303.09556), section 3.4.

    Args:
        kind: what the network predicts.
        alpha_bar: (N,), in (0, 1).
        gamma: 5 in the paper.
        sigma_data: of ``edm``.
    """
    snr = alpha_bar / (1 - alpha_bar)
    clipped = snr.clamp(max=gamma)
    if kind == "x0":
        return clipped
    if kind == "edm":
        return clipped / (snr + sigma_data**-2)
    return clipped / snr if kind == "eps" else clipped / (snr + 1)


def sigmoid_weight(
    kind: PredictionKind | Literal["edm"], alpha_bar: Tensor, bias: float, sigma_data: float = 0.5
) -> Tensor:
    """Weight of the simple loss that makes eps' loss weight sigmoid(bias - log SNR): 2303.00848, 2410.19324.

    To be divided by the density with which log SNR was drawn: the papers' integral runs over log SNR.

    Args:
        kind: what the network predicts.
        alpha_bar: (N,), in (0, 1).
        bias: the papers' b.
        sigma_data: of ``edm``.
    """
    snr = alpha_bar / (1 - alpha_bar)
    weight = torch.sigmoid(bias - torch.log(snr))
    if kind == "eps":
        return weight
    # The squared error of x_0 is that of eps over SNR, that of v and of F as much smaller again as in min-SNR.
    weight = weight * snr
    return weight if kind == "x0" else weight / (snr + (1 if kind == "v" else sigma_data**-2))


def normal_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) in nats, elementwise, for diagonal Gaussians."""
    # The terms stand in the order of published code, so that near 0, where they cancel, float32 rounds alike.
    return 0.5 * (
        -1
        + log_variance_2
        - log_variance_1
        + torch.exp(log_variance_1 - log_variance_2)
        + (mean_1 - mean_2) ** 2 * torch.exp(-log_variance_2)
    )


def decoder_log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-likelihood in nats of 8-bit pixels, elementwise: a Gaussian cut into 256 bins over [-1, 1], DDPM eq. 13."""
    half_bin = 1 / 255
    inverse_std = torch.exp(-0.5 * log_variance)

    def cdf(x: Tensor) -> Tensor:
        # This approximation of the normal CDF is that of DDPM's code and its successors, with whose bounds ours agree.
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    upper = cdf((x0 - mean + half_bin) * inverse_std)
    lower = cdf((x0 - mean - half_bin) * inverse_std)
    # The outermost bins reach to infinity.
    upper = torch.where(x0 > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x0 < -0.999, torch.zeros_like(lower), lower)
    return torch.log((upper - lower).clamp(min=1e-12))


def variational_bound(
    *,
    x0: Tensor,
    x_t: Tensor,
    predicted_x0: Tensor,
    variance_output: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_s: Tensor,
    log_beta: Tensor,
    log_posterior: Tensor,
    first: Tensor,
) -> Tensor:
    """One step's term of the variational bound, in bits per dimension: (N,).

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)), or the decoder's negative log-likelihood at the first step. The predicted
    mean is detached: the bound trains the variance alone (iDDPM, section 3.1).

    Args:
        x0, x_t, predicted_x0: (N, C, H, W).
        variance_output: (N, C, H, W), the network's raw v; -1 means the posterior's variance, 1 means beta.
        alpha_bar_t, alpha_bar_s: broadcastable, best in float64 (see :mod:`~cascaded_diffusion.diffusion.process`).
        log_beta, log_posterior: broadcastable, in x0's type; ``log_posterior`` finite at the first step too.
        first: bool (N,), whether this is the step to x_0.
    """
    true_mean = posterior_mean(x0, x_t, alpha_bar_t, alpha_bar_s)
    model_mean = posterior_mean(predicted_x0.detach(), x_t, alpha_bar_t, alpha_bar_s)
    log_variance = learned_log_variance(variance_output, log_beta, log_posterior)
    kl = mean_per_image(normal_kl(true_mean, log_posterior.expand_as(log_variance), model_mean, log_variance))
    nll = -mean_per_image(decoder_log_likelihood(x0, model_mean, log_variance))
    return torch.where(first, nll, kl) / math.log(2)


def hybrid_loss(mse: Tensor, bound: Tensor, timesteps: int) -> Tensor:
    """L_simple + 0.001 L_vlb with L_vlb = T E_t[bound]: iDDPM eq. 16. Arguments (N,), bound in bits per dimension."""
    return mse + VLB_WEIGHT * timesteps * bound
