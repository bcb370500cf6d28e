r"""Samplers: free functions of one signature.

``sampler(denoise, x, levels, *, noise, callback=None, variance="posterior")`` walks ``x`` from ``levels[0]`` to
``levels[-1]`` and returns it there: the image if the last level is clean, z_s if the grid stops at s.
``denoise(x, level)`` is called at every level but the last, never at or below it. ``variance`` is that of a random step
and means nothing to samplers without one. On the variance-preserving scale every level reads
:math:`x = \sqrt{\bar\alpha}\,x_0 + \sqrt{1-\bar\alpha}\,\epsilon`.

To add a sampler, write one more such function and name it in ``SamplerName`` and ``SAMPLERS``. If it calls the denoiser
more than once a step, ``evaluated_levels`` must know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from cascaded_diffusion.diffusion.process import (
    beta_between,
    learned_log_variance,
    posterior_mean,
    posterior_variance,
    prediction_target,
    q_sample,
)
from cascaded_diffusion.diffusion.schedule import Level

__all__ = [
    "SAMPLERS",
    "Callback",
    "Denoiser",
    "NoiseSource",
    "Prediction",
    "Sampler",
    "SamplerName",
    "Step",
    "VarianceKind",
    "ancestral",
    "ddim",
    "dpmpp_2m",
    "evaluated_levels",
    "evaluations",
    "heun",
]

SamplerName = Literal["ancestral", "ddim", "heun", "dpmpp-2m"]
VarianceKind = Literal["beta", "posterior", "learned"]


class Prediction(NamedTuple):
    """What a denoiser says of x at a level.

    Attributes:
        x0: the image.
        eps: the noise that fits to it.
        variance: the raw variance, if it is learned.
        guided: whether guidance acted. Where it begins or ends, x0 jumps from one level to the next, and a sampler that
            looks back must not look across.
    """

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None
    guided: bool = False


@dataclass(frozen=True)
class Step:
    """What a callback sees after each step: x has arrived at ``level``; ``x0`` is the image predicted on the way."""

    index: int
    total: int
    level: Level
    x: Tensor
    x0: Tensor


Denoiser = Callable[[Tensor, Level], Prediction]
NoiseSource = Callable[[int], Tensor]
"""Standard normal noise of x's shape for the i-th step, so that a sampler draws nothing by itself."""
Callback = Callable[[Step], None]


class Sampler(Protocol):
    """The signature of every sampler."""

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        levels: Sequence[Level],
        *,
        noise: NoiseSource,
        callback: Callback | None = None,
        variance: VarianceKind = "posterior",
    ) -> Tensor: ...


def _report(callback: Callback | None, levels: Sequence[Level], index: int, x: Tensor, x0: Tensor) -> None:
    if callback is not None:
        callback(Step(index, len(levels) - 1, levels[index + 1], x, x0))


def _step_log_variance(prediction: Prediction, kind: VarianceKind, t: Level, s: Level) -> float | Tensor:
    log_beta = math.log(beta_between(t.alpha_bar, s.alpha_bar))
    log_posterior = math.log(posterior_variance(t.alpha_bar, s.alpha_bar))
    if kind != "learned":
        return log_beta if kind == "beta" else log_posterior
    if prediction.variance is None:
        raise ValueError("variance: learned, but the denoiser gives no variance output")
    return learned_log_variance(prediction.variance, log_beta, log_posterior)


def ancestral(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: NoiseSource,
    callback: Callback | None = None,
    variance: VarianceKind = "posterior",
) -> Tensor:
    """Ancestral sampling, DDPM algorithm 2, over any subset of the steps (iDDPM section 4).

    The variance of a step is beta, the posterior's, or learned between the two (iDDPM eq. 15). The step to the clean
    image adds no noise.
    """
    for i, (t, s) in enumerate(pairwise(levels)):
        prediction = denoise(x, t)
        x = posterior_mean(prediction.x0, x, t.alpha_bar, s.alpha_bar)
        if s.alpha_bar < 1:
            log_variance = _step_log_variance(prediction, variance, t, s)
            std = log_variance.mul(0.5).exp() if isinstance(log_variance, Tensor) else math.exp(0.5 * log_variance)
            x = x + std * noise(i)
        _report(callback, levels, i, x, prediction.x0)
    return x


def ddim(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: NoiseSource,
    callback: Callback | None = None,
    variance: VarianceKind = "posterior",
    eta: float = 0.0,
) -> Tensor:
    """DDIM (2010.02502, eq. 12): deterministic with eta = 0; eta = 1 has the posterior's variance."""
    for i, (t, s) in enumerate(pairwise(levels)):
        prediction = denoise(x, t)
        var = eta**2 * float(posterior_variance(t.alpha_bar, s.alpha_bar))
        x = math.sqrt(s.alpha_bar) * prediction.x0 + math.sqrt(max(1 - s.alpha_bar - var, 0.0)) * prediction.eps
        if var > 0:
            x = x + math.sqrt(var) * noise(i)
        _report(callback, levels, i, x, prediction.x0)
    return x


def heun(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: NoiseSource,
    callback: Callback | None = None,
    variance: VarianceKind = "posterior",
) -> Tensor:
    r"""Heun's second-order method (EDM, 2206.00364, algorithm 1), two evaluations a step but for the last.

    EDM integrates over sigma; here the probability-flow ODE is written in the angle phi with sqrt(alpha_bar) = cos phi,
    where it is dx/dphi = v (2202.00512, appendix D), which stays bounded from pure noise to the clean image. The last
    step is DDIM's, for the network must not be called at the level where sampling stops.
    """
    for i, (t, s) in enumerate(pairwise(levels)):
        first = denoise(x, t)
        proposal = q_sample(first.x0, first.eps, s.alpha_bar)
        if i < len(levels) - 2:
            second = denoise(proposal, s)
            phi_t, phi_s = (math.acos(math.sqrt(level.alpha_bar)) for level in (t, s))
            v_t = prediction_target("v", first.x0, first.eps, t.alpha_bar)
            v_s = prediction_target("v", second.x0, second.eps, s.alpha_bar)
            proposal = x + (phi_s - phi_t) * 0.5 * (v_t + v_s)
        x = proposal
        _report(callback, levels, i, x, first.x0)
    return x


def _log_snr_half(level: Level) -> float:
    return 0.5 * (math.log(level.alpha_bar) - math.log1p(-level.alpha_bar)) if level.alpha_bar < 1 else math.inf


_LONGEST_LOOK_AHEAD = 2.0
"""DPM-Solver++(2M) extrapolates over at most this many lengths of the step before."""


def dpmpp_2m(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    *,
    noise: NoiseSource,
    callback: Callback | None = None,
    variance: VarianceKind = "posterior",
) -> Tensor:
    """DPM-Solver++(2M) (2211.01095, algorithm 2): second order at one evaluation a step, by looking back one step.

    A step more than twice as long in log SNR as the one before is taken at first order: extrapolating that far
    overshoots, and strided discrete grids have such a step, five times as long, down to k = 1. So is the first step
    inside an interval of guidance (2404.07724), and the first behind it: a line from a guided image to one that is not
    says nothing of where either goes.
    """
    previous: Prediction | None = None
    h_previous = 0.0
    for i, (t, s) in enumerate(pairwise(levels)):
        prediction = denoise(x, t)
        x0 = prediction.x0
        h = _log_snr_half(s) - _log_snr_half(t)
        estimate = x0
        if previous is not None and previous.guided == prediction.guided and h <= _LONGEST_LOOK_AHEAD * h_previous:
            estimate = x0 + 0.5 * h / h_previous * (x0 - previous.x0)
        ratio = math.sqrt((1 - s.alpha_bar) / (1 - t.alpha_bar))
        x = ratio * x - math.sqrt(s.alpha_bar) * math.expm1(-h) * estimate
        previous, h_previous = prediction, h
        _report(callback, levels, i, x, x0)
    return x


SAMPLERS: dict[SamplerName, Sampler] = {"ancestral": ancestral, "ddim": ddim, "heun": heun, "dpmpp-2m": dpmpp_2m}


def evaluated_levels(sampler: SamplerName, levels: Sequence[Level]) -> list[Level]:
    """The levels at which a sampler calls the denoiser on a grid, in order."""
    if sampler != "heun":
        return list(levels[:-1])
    called = []
    for i, (t, s) in enumerate(pairwise(levels)):
        called += [t, s] if i < len(levels) - 2 else [t]
    return called


def evaluations(sampler: SamplerName, levels: Sequence[Level]) -> int:
    """Evaluations of the denoiser (NFE) that a sampler spends on a grid; guidance makes some of them cost more."""
    return len(evaluated_levels(sampler, levels))
