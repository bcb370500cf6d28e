"""Losses: hand arithmetic, published numbers, and what their gradients reach."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cascaded_diffusion.diffusion.losses import (
    decoder_log_likelihood,
    hybrid_loss,
    mean_per_image,
    min_snr_weight,
    normal_kl,
    simple_loss,
    variational_bound,
)
from cascaded_diffusion.diffusion.process import PredictionKind, from_prediction, per_image, prediction_target, q_sample


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_simple_loss_is_a_mean_over_each_example() -> None:
    output = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    target = torch.tensor([[[[0.0, 0.0]]], [[[3.0, -1.0]]]])
    assert simple_loss(output, target).tolist() == [2.5, 5.0]
    assert simple_loss(output.to(torch.bfloat16), target).dtype == torch.float32
    assert mean_per_image(torch.arange(6.0).reshape(2, 1, 3)).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("alpha_bar", [0.05, 0.5, 0.8, 0.95])
def test_min_snr_makes_every_predictions_loss_the_same_loss_of_x0(kind: PredictionKind, alpha_bar: float) -> None:
    """weight * ||output - target||^2 = min(SNR, 5) * ||x0' - x0||^2, whatever the network predicts."""
    x0, noise, output = _randn(1, 1, 4, 4), _randn(1, 1, 4, 4, seed=1), _randn(1, 1, 4, 4, seed=2)
    x_t = q_sample(x0, noise, alpha_bar)
    weight = float(min_snr_weight(kind, torch.tensor([alpha_bar], dtype=torch.float64), 5.0))
    loss = mean_per_image((output - prediction_target(kind, x0, noise, alpha_bar)) ** 2)
    loss_of_x0 = mean_per_image((from_prediction(kind, output, x_t, alpha_bar) - x0) ** 2)
    snr = alpha_bar / (1 - alpha_bar)
    assert float(weight * loss) == pytest.approx(float(min(snr, 5.0) * loss_of_x0), rel=1e-10)


@pytest.mark.parametrize("kind, expected", [
    ("eps", [1.0, 1.0, 5 / 9]), ("x0", [0.25, 1.0, 5.0]), ("v", [0.25 / 1.25, 1 / 2, 5 / 10]),
])  # fmt: skip
def test_min_snr_weights_in_numbers(kind: PredictionKind, expected: list[float]) -> None:
    """At SNR 1/4, 1 and 9, with gamma 5."""
    weights = min_snr_weight(kind, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), 5.0)
    assert weights.tolist() == pytest.approx(expected)


def test_kl_is_zero_between_equals_and_matches_torch() -> None:
    mean_1, mean_2, log_1, log_2 = (_randn(50, seed=i) for i in range(4))
    assert normal_kl(mean_1, log_1, mean_1, log_1).abs().max() < 1e-15
    ours = normal_kl(mean_1, log_1, mean_2, log_2)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean_1, (0.5 * log_1).exp()), torch.distributions.Normal(mean_2, (0.5 * log_2).exp())
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mean, std", [(0.0, 0.1), (0.98, 0.05), (-1.3, 0.3), (0.2, 0.003)])
def test_the_decoders_bins_sum_to_one(mean: float, std: float) -> None:
    x0 = (torch.arange(256, dtype=torch.float64) * 2 / 255) - 1
    log_p = decoder_log_likelihood(x0, torch.full_like(x0, mean), torch.full_like(x0, 2 * math.log(std)))
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_decoder_is_the_normal_distributions_share_of_a_bin() -> None:
    """The tanh approximation of the normal CDF is within 3e-4 of it."""
    std, mean = 0.2, 0.1
    for pixel in (0, 60, 128, 140, 255):
        x0 = torch.tensor([pixel * 2 / 255 - 1], dtype=torch.float64)
        edges = [(float(x0) + side / 255 - mean) / std for side in (-1, 1)]
        below, above = (0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges)
        share = (1.0 if pixel == 255 else above) - (0.0 if pixel == 0 else below)
        log_variance = torch.tensor([2 * math.log(std)], dtype=torch.float64)
        ours = decoder_log_likelihood(x0, torch.tensor([mean], dtype=torch.float64), log_variance).exp()
        assert float(ours) == pytest.approx(share, abs=6e-4)


def test_impossible_pixels_cost_finitely_much() -> None:
    far = decoder_log_likelihood(torch.tensor([0.5]), torch.tensor([-0.5]), torch.tensor([-12.0]))
    assert float(far) == pytest.approx(math.log(1e-12), abs=1e-3)


def _bound(
    predicted_x0: Tensor, variance_output: Tensor, x0: Tensor, x_t: Tensor, levels: tuple[float, float], first: bool
) -> Tensor:
    ab_t, ab_s = (per_image(torch.full((len(x0),), level, dtype=torch.float64), x0) for level in levels)
    beta = 1 - ab_t / ab_s
    posterior = beta * (1 - ab_s) / (1 - ab_t) if not first else beta / 2
    return variational_bound(
        x0=x0,
        x_t=x_t,
        predicted_x0=predicted_x0,
        variance_output=variance_output,
        alpha_bar_t=ab_t,
        alpha_bar_s=ab_s,
        log_beta=beta.log(),
        log_posterior=posterior.log(),
        first=torch.full((len(x0),), first),
    )


def test_the_bound_by_hand() -> None:
    """One pixel, alpha_bar 0.5 -> 0.8: beta = 3/8, posterior variance 0.4 * 3/8 = 0.15, weight of x0 sqrt(0.8) 3/4."""
    x0, x_t, predicted = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.2, 0.9, 0.5))
    shift = math.sqrt(0.8) * 0.75 * (0.5 - 0.2)
    for v, variance in ((-1.0, 0.15), (1.0, 0.375), (0.0, math.sqrt(0.15 * 0.375))):
        nats = 0.5 * (math.log(variance / 0.15) - 1 + 0.15 / variance + shift**2 / variance)
        bound = _bound(predicted, torch.full_like(x0, v), x0, x_t, (0.5, 0.8), first=False)
        assert bound.tolist() == pytest.approx([nats / math.log(2)], rel=1e-12)


def test_the_first_steps_bound_is_the_decoders() -> None:
    x0, x_t, predicted = (
        torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (51 / 255 * 2 - 1, 0.9, -0.55)
    )
    bound = _bound(predicted, torch.ones_like(x0), x0, x_t, (0.99, 1.0), first=True)
    log_p = decoder_log_likelihood(x0, predicted, torch.full_like(x0, math.log(0.01)))
    assert bound.tolist() == pytest.approx([-float(log_p) / math.log(2)], rel=1e-10)


@pytest.mark.parametrize("first", [False, True])
def test_the_bound_teaches_the_variance_alone(first: bool) -> None:
    x0, x_t = _randn(2, 1, 4, 4).clamp(-1, 1), _randn(2, 1, 4, 4, seed=1)
    predicted = _randn(2, 1, 4, 4, seed=2).requires_grad_()
    v = (0.5 * _randn(2, 1, 4, 4, seed=3)).requires_grad_()
    levels = (0.99, 1.0) if first else (0.5, 0.8)
    _bound(predicted, v, x0, x_t, levels, first).sum().backward()
    assert predicted.grad is None
    assert v.grad is not None
    assert v.grad.isfinite().all()
    assert v.grad.any()


def test_the_hybrid_loss_weighs_the_whole_bound_by_a_thousandth() -> None:
    mse, bound = torch.tensor([0.3, 0.1]), torch.tensor([0.05, 7.0])
    assert hybrid_loss(mse, bound, 4000).tolist() == pytest.approx([0.3 + 4 * 0.05, 0.1 + 4 * 7.0])
    assert hybrid_loss(mse, bound, 1000).tolist() == pytest.approx([0.35, 7.1])
