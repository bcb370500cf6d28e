"""The closed forms of diffusion against Bayes' rule on a line, and round trips between predictions."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from cascaded_diffusion.diffusion.process import (
    PredictionKind,
    beta_between,
    dynamic_threshold,
    from_prediction,
    learned_log_variance,
    noise_from_image,
    per_image,
    posterior_mean,
    posterior_variance,
    prediction_target,
    q_sample,
)

KINDS: tuple[PredictionKind, ...] = get_args(PredictionKind)


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha_bar", [1e-9, 0.01, 0.5, 0.99, 1 - 1e-9])
def test_a_perfect_prediction_gives_the_image_and_the_noise(kind: PredictionKind, alpha_bar: float) -> None:
    x0, noise = _images(2, 3, 4, 4), _images(2, 3, 4, 4, seed=1)
    x_t = q_sample(x0, noise, alpha_bar)
    output = prediction_target(kind, x0, noise, alpha_bar)
    recovered = from_prediction(kind, output, x_t, alpha_bar)
    # eps at almost pure noise, and the noise at almost clean images, are divided by sqrt(1e-9).
    torch.testing.assert_close(recovered, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(noise_from_image(x_t, x0, alpha_bar), noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_of_each_image_and_one_level_for_all_are_the_same(kind: PredictionKind) -> None:
    x0, noise = _images(3, 2, 4, 4), _images(3, 2, 4, 4, seed=1)
    levels = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    ab = per_image(levels, x0)
    assert ab.shape == (3, 1, 1, 1)
    x_t, target = q_sample(x0, noise, ab), prediction_target(kind, x0, noise, ab)
    for i, level in enumerate(levels.tolist()):
        torch.testing.assert_close(x_t[i], q_sample(x0[i], noise[i], level))
        torch.testing.assert_close(target[i], prediction_target(kind, x0[i], noise[i], level))
    torch.testing.assert_close(from_prediction(kind, target, x_t, ab), x0)


def test_targets_in_numbers() -> None:
    x0, noise = torch.tensor([[[[0.5]]]]), torch.tensor([[[[-2.0]]]])
    assert float(q_sample(x0, noise, 0.64)) == pytest.approx(0.8 * 0.5 - 0.6 * 2.0)
    assert float(prediction_target("eps", x0, noise, 0.64)) == -2.0
    assert float(prediction_target("x0", x0, noise, 0.64)) == 0.5
    assert float(prediction_target("v", x0, noise, 0.64)) == pytest.approx(0.8 * -2.0 - 0.6 * 0.5)


def test_noising_to_level_one_is_bit_equal() -> None:
    x0, noise = _images(2, 3, 4, 4).float(), _images(2, 3, 4, 4, seed=1).float()
    assert torch.equal(q_sample(x0, noise, 1.0), x0)
    mixed = q_sample(x0, noise, per_image(torch.tensor([1.0, 0.5], dtype=torch.float64), x0))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed[0], x0[0])
    assert not torch.equal(mixed[1], x0[1])


def test_coefficients_are_worked_out_in_the_precision_of_the_level() -> None:
    """1 - alpha_bar = 1e-6 has two digits in float32; SR3's schedule begins there."""
    level = torch.tensor([1 - 1e-6], dtype=torch.float64)
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert float(q_sample(zero, one, per_image(level, zero))) == pytest.approx(1e-3, rel=1e-6)
    ab_s = per_image(torch.tensor([0.5], dtype=torch.float64), zero)
    weight = posterior_mean(one, zero, ab_s * (1 - 1e-7), ab_s)
    assert float(weight) == pytest.approx(math.sqrt(0.5) * 1e-7 / 0.5, rel=1e-6)


@pytest.mark.parametrize("alpha_bar_t, alpha_bar_s", [(0.3, 0.8), (0.01, 0.02), (0.95, 0.99), (0.2, 0.9999)])
def test_posterior_is_bayes_rule_on_a_line(alpha_bar_t: float, alpha_bar_s: float) -> None:
    """q(x_s | x_t, x_0), proportional to q(x_t | x_s) q(x_s | x_0), summed on a fine grid of x_s."""
    x0, x_t = 0.7, -0.4
    x_s = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    ratio = alpha_bar_t / alpha_bar_s
    log_density = -0.5 * (x_t - math.sqrt(ratio) * x_s) ** 2 / (1 - ratio)
    log_density += -0.5 * (x_s - math.sqrt(alpha_bar_s) * x0) ** 2 / (1 - alpha_bar_s)
    weights = torch.softmax(log_density, dim=0)
    mean = float((weights * x_s).sum())
    variance = float((weights * (x_s - mean) ** 2).sum())
    given = torch.tensor([x0], dtype=torch.float64), torch.tensor([x_t], dtype=torch.float64)
    assert float(posterior_mean(*given, alpha_bar_t, alpha_bar_s)) == pytest.approx(mean, abs=1e-9)
    assert posterior_variance(alpha_bar_t, alpha_bar_s) == pytest.approx(variance, rel=1e-6)
    assert beta_between(alpha_bar_t, alpha_bar_s) == pytest.approx(1 - ratio)


def test_the_step_to_the_image_is_the_predicted_image() -> None:
    x0, x_t = _images(2, 1, 3, 3), _images(2, 1, 3, 3, seed=1)
    torch.testing.assert_close(posterior_mean(x0, x_t, 0.4, 1.0), x0)
    assert posterior_variance(0.4, 1.0) == 0


def test_learned_variance_runs_from_the_posteriors_to_beta_in_logarithms() -> None:
    v = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(learned_log_variance(v, -2.0, -6.0), torch.tensor([-6.0, -4.0, -2.0, 0.0]))


def test_dynamic_threshold_leaves_images_in_range_alone() -> None:
    x0 = _images(2, 3, 8, 8).clamp(-1, 1)
    assert torch.equal(dynamic_threshold(x0, 0.9), x0)


def test_dynamic_threshold_clips_each_image_to_its_own_percentile() -> None:
    ramp = torch.arange(101, dtype=torch.float64).reshape(1, 1, 1, 101)
    x0 = torch.cat([ramp / 25, -ramp / 200])
    out = dynamic_threshold(x0, 0.75)
    # Three quarters of 0..4 lie below 3, which becomes 1; the second image never leaves [-1, 1].
    torch.testing.assert_close(out[0], (x0[0].clamp(max=3) / 3))
    assert torch.equal(out[1], x0[1])
    torch.testing.assert_close(dynamic_threshold(-x0, 0.75), -out)
    assert dynamic_threshold(x0.float(), 0.75).dtype == torch.float32
