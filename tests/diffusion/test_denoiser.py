"""Diffusion: published numbers through the class that training and sampling use, and that the two agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from cascaded_diffusion.diffusion.denoiser import Diffusion, DiffusionConfig
from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.losses import min_snr_weight
from cascaded_diffusion.diffusion.process import (
    PredictionKind,
    beta_between,
    learned_log_variance,
    per_image,
    posterior_mean,
    posterior_variance,
    prediction_target,
    q_sample,
)
from cascaded_diffusion.diffusion.samplers import VarianceKind, ddim
from cascaded_diffusion.diffusion.schedule import ScheduleConfig

GOLDEN = Path(__file__).parent.parent / "goldens" / "diffusion_cosine_4000.safetensors"
KINDS: tuple[PredictionKind, ...] = get_args(PredictionKind)


def _diffusion(timesteps: int | None = 1000, *, schedule: dict[str, Any] | None = None, **values: Any) -> Diffusion:
    config = ScheduleConfig(**{"timesteps": timesteps, **(schedule or {})})
    return Diffusion(DiffusionConfig(noise_schedule=config, **values))


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def published() -> Diffusion:
    return _diffusion(4000, variance="learned", rescale_steps=False)


def _times(golden: dict[str, Tensor]) -> Tensor:
    return (golden["t"].double() + 1) / 4000


def test_golden_noising(golden: dict[str, Tensor], published: Diffusion) -> None:
    ab = per_image(published.schedule.alpha_bar(_times(golden)), golden["x0"])
    torch.testing.assert_close(q_sample(golden["x0"], golden["noise"], ab), golden["xt"], rtol=1e-6, atol=1e-6)


def test_golden_loss_is_mse_plus_the_whole_bound(golden: dict[str, Tensor], published: Diffusion) -> None:
    """Through training_loss: mse + vb T/1000 with T = 4000, and the two parts on their own."""
    output, inputs = golden["model_output"], []

    def network(x: Tensor, time: Tensor) -> Tensor:
        inputs.append((x, time))
        return output

    loss = published.training_loss(network, golden["x0"], golden["noise"], _times(golden))
    assert loss.dtype == torch.float32
    mse = (output[:, :3] - golden["noise"]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(mse, golden["mse"], rtol=1e-4, atol=0)
    torch.testing.assert_close(loss, golden["mse"] + 4 * golden["vb"], rtol=1e-4, atol=0)
    [(x, time)] = inputs
    torch.testing.assert_close(x, golden["xt"], rtol=1e-6, atol=1e-6)
    assert torch.equal(time, golden["t"].float())


def test_golden_bound(golden: dict[str, Tensor], published: Diffusion) -> None:
    prediction, variance = golden["model_output"].split(3, dim=1)
    bound = published.bound(golden["x0"], golden["xt"], prediction, variance, _times(golden))
    # The bound at t = 2000 is 1e-5, what is left of terms of size 7 in float32: other machines may round 1e-8
    # elsewhere.
    torch.testing.assert_close(bound, golden["vb"], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(golden["mse"] + bound, golden["loss"], rtol=1e-4, atol=0)


def test_golden_posterior_log_variance(golden: dict[str, Tensor], published: Diffusion) -> None:
    """Read off the bound: v = -1 is the posterior's variance, and the first step takes the second's."""
    table = golden["posterior_log_variance_clipped"]
    beta = 1 - golden["alphas_cumprod"][1:] / golden["alphas_cumprod"][:-1]
    for t in (1, 2, 2000, 3999):
        level, below = (published.schedule.level((t + shift) / 4000).alpha_bar for shift in (1, 0))
        assert math.log(posterior_variance(level, below)) == pytest.approx(float(table[t]), rel=1e-6)
        assert beta_between(level, below) == pytest.approx(float(beta[t - 1]), rel=1e-6)
    x0 = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    shown: list[float] = []
    for v in (-1.0, 1.0):
        # At the first step a pixel at its mean has the likelihood of one bin; bisection finds the std that gives it.
        variance = torch.full_like(x0, v)
        nats = float(published.bound(x0, x0, x0, variance, torch.tensor([1 / 4000]))) * math.log(2)
        share = math.exp(-nats)
        low, high = 1e-4, 1.0
        for _ in range(200):
            std = math.sqrt(low * high)
            z = 1 / 255 / std
            below_z = math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
            low, high = (std, high) if below_z > share else (low, std)
        shown.append(2 * math.log(low))
    assert shown[0] == pytest.approx(float(table[0]), rel=1e-4)
    assert shown[1] == pytest.approx(math.log(1 - float(golden["alphas_cumprod"][0])), rel=1e-4)


def test_golden_posterior(golden: dict[str, Tensor], published: Diffusion) -> None:
    """pred_xstart, mean and log_variance through the denoiser that samplers call."""
    for i, k in enumerate((golden["t"] + 1).tolist()):
        t, s = (published.schedule.level(step / 4000) for step in (k, k - 1))
        one = slice(i, i + 1)
        denoise = published.denoiser(lambda x, time, one=one: golden["model_output"][one])  # type: ignore[misc]
        prediction = denoise(golden["xt"][one], t)
        torch.testing.assert_close(prediction.x0, golden["pred_xstart"][one], rtol=1e-4, atol=1e-6)
        mean = posterior_mean(prediction.x0, golden["xt"][one], t.alpha_bar, s.alpha_bar)
        torch.testing.assert_close(mean, golden["mean"][one], rtol=1e-4, atol=1e-6)
        assert prediction.variance is not None
        log_beta = math.log(1 - t.alpha_bar / s.alpha_bar)
        log_posterior = float(golden["posterior_log_variance_clipped"][k - 1])
        log_variance = learned_log_variance(prediction.variance, log_beta, log_posterior)
        torch.testing.assert_close(log_variance, golden["log_variance"][one], rtol=1e-4, atol=0)


def test_golden_ddim(golden: dict[str, Tensor], published: Diffusion) -> None:
    def network(x: Tensor, time: Tensor) -> Tensor:
        return functional.conv2d(x, golden["W"]) + 0.01 * per_image(time, x) / 4000

    levels = sampling_grid(published.schedule, 50)
    x = ddim(published.denoiser(network), golden["xT"], levels, noise=lambda i: golden["xT"])
    torch.testing.assert_close(x, golden["ddim"], rtol=0, atol=1e-3)


def test_hybrid_loss_by_hand() -> None:
    """T = 2, one pixel, through training_loss: every number worked out with Python's own arithmetic."""
    diffusion = _diffusion(2, schedule={"kind": "linear", "beta_start": 0.3, "beta_end": 0.5}, variance="learned")
    ab1, ab2 = 0.7, 0.35
    x0, noise, eps, v = 0.2, -0.8, 0.1, 0.5
    x_t = math.sqrt(ab2) * x0 + math.sqrt(1 - ab2) * noise
    predicted = (x_t - math.sqrt(1 - ab2) * eps) / math.sqrt(ab2)
    posterior = 0.5 * (1 - ab1) / (1 - ab2)
    variance = 0.5**0.75 * posterior**0.25
    shift = math.sqrt(ab1) * 0.5 / (1 - ab2) * (predicted - x0)
    kl = 0.5 * (math.log(variance / posterior) - 1 + posterior / variance + shift**2 / variance)
    expected = (eps - noise) ** 2 + 2 / 1000 * kl / math.log(2)
    output = torch.tensor([eps, v]).reshape(1, 2, 1, 1)
    loss = diffusion.training_loss(
        lambda x, time: output,
        torch.full((1, 1, 1, 1), x0),
        torch.full((1, 1, 1, 1), noise),
        torch.ones(1, dtype=torch.float64),
    )
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_reaches_no_channel_of_the_mean(kind: PredictionKind) -> None:
    diffusion = _diffusion(10, variance="learned", prediction=kind)
    x0, noise = _randn(4, 2, 4, 4).clamp(-1, 1), _randn(4, 2, 4, 4, seed=1)
    times = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    output = _randn(4, 4, 4, 4, seed=2).requires_grad_()
    diffusion.training_loss(lambda x, time: output, x0, noise, times).sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    # What reaches the mean is the simple loss alone: 2 (output - target) / values.
    ab = per_image(diffusion.schedule.alpha_bar(times), x0)
    target = prediction_target(kind, x0, noise, ab)
    torch.testing.assert_close(output.grad[:, :2], 2 * (output.detach()[:, :2] - target) / 32)
    assert output.grad[:, 2:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timesteps", [1, 50, None])
def test_a_perfect_network_has_no_loss_and_is_a_perfect_denoiser(kind: PredictionKind, timesteps: int | None) -> None:
    """Training and sampling read the same configuration alike: the output that has no loss denoises to the image."""
    diffusion = _diffusion(timesteps, prediction=kind)
    x0, noise = _randn(6, 1, 4, 4).clamp(-1, 1), _randn(6, 1, 4, 4, seed=1)
    times = diffusion.draw_times(torch.linspace(0, 0.999, 6, dtype=torch.float64))
    inputs: list[tuple[Tensor, Tensor]] = []
    alpha_bar = diffusion.schedule.alpha_bar(times)
    target = prediction_target(kind, x0, noise, per_image(alpha_bar, x0))

    def network(x: Tensor, time: Tensor) -> Tensor:
        inputs.append((x, time))
        return target

    loss = diffusion.training_loss(network, x0, noise, times)
    assert loss.shape == (6,)
    assert loss.abs().max() < 1e-10
    x_t, time_in_training = inputs[0]
    for i, u in enumerate(times.tolist()):
        seen: list[Tensor] = []

        def one(x: Tensor, time: Tensor, i: int = i, seen: list[Tensor] = seen) -> Tensor:
            seen.append(time)
            return target[i : i + 1]

        level = diffusion.schedule.level(u)
        x0_again, eps, variance, _ = diffusion.denoiser(one)(x_t[i : i + 1], level)
        assert variance is None
        # From almost pure noise eps tells float32 little of the image.
        if kind != "eps" or level.alpha_bar > 1e-3:
            torch.testing.assert_close(x0_again[0], x0[i], rtol=0, atol=2e-4)
            torch.testing.assert_close(eps[0], noise[i], rtol=0, atol=0.02 if level.alpha_bar > 0.9999 else 2e-4)
        assert torch.equal(seen[0], time_in_training[i : i + 1])


def test_min_snr_weighs_each_example_at_its_own_level() -> None:
    x0, noise, output = (_randn(4, 1, 4, 4, seed=seed) for seed in range(3))
    times = torch.tensor([0.1, 0.3, 0.6, 0.95], dtype=torch.float64)
    plain, weighted = (
        _diffusion(100, prediction="v", min_snr_gamma=gamma).training_loss(lambda x, time: output, x0, noise, times)
        for gamma in (None, 5.0)
    )
    weight = min_snr_weight("v", _diffusion(100).schedule.alpha_bar(times), 5.0).float()
    torch.testing.assert_close(weighted, plain * weight)
    assert len(set(weight.tolist())) == 4


def test_losses_do_not_mix_examples() -> None:
    variances: tuple[VarianceKind, ...] = ("posterior", "learned")
    for variance in variances:
        diffusion = _diffusion(100, variance=variance)
        channels = 2 if diffusion.learns_variance else 1
        x0, noise, output = _randn(4, 1, 4, 4), _randn(4, 1, 4, 4, seed=1), _randn(4, channels, 4, 4, seed=2)
        times = torch.tensor([0.01, 0.3, 0.6, 1.0], dtype=torch.float64)
        together = diffusion.training_loss(lambda x, time: output, x0, noise, times)  # noqa: B023
        for i in range(4):
            one = slice(i, i + 1)
            own = output[one]
            alone = diffusion.training_loss(lambda x, time, own=own: own, x0[one], noise[one], times[one])  # type: ignore[misc]
            torch.testing.assert_close(alone, together[one])


def test_times_are_drawn_evenly_from_1_to_t() -> None:
    diffusion = _diffusion(4)
    u = torch.tensor([0.0, 0.24999, 0.25, 0.5, 0.75, 1 - 2.0**-32], dtype=torch.float64)
    assert (diffusion.draw_times(u) * 4).tolist() == [1, 1, 2, 3, 4, 4]
    continuous = _diffusion(None).draw_times(u)
    assert continuous.max() == 1
    assert continuous.min() == 2.0**-32
    between = _diffusion(4, schedule={"continuous": True}).draw_times(u)
    assert torch.equal(between, continuous)


def test_the_networks_time_input() -> None:
    times = torch.tensor([0.25, 1.0], dtype=torch.float64)

    def told(diffusion: Diffusion) -> list[float]:
        value = diffusion.time_input(times, diffusion.schedule.alpha_bar(times))
        assert value.dtype == torch.float32
        return value.tolist()

    # Steps are counted from 0, as in DDPM's code.
    assert told(_diffusion(4000)) == [999 / 4, 3999 / 4]
    assert told(_diffusion(4000, rescale_steps=False)) == [999, 3999]
    continuous = _diffusion(None)
    roots = continuous.schedule.alpha_bar(times).sqrt()
    assert told(continuous) == pytest.approx((1000 * roots).tolist())
    angle = _diffusion(None, noise_embedding="angle")
    assert told(angle) == pytest.approx([1000 * math.acos(root) / (math.pi / 2) for root in roots.tolist()], abs=1e-3)
    assert angle.time_input(torch.zeros(1), torch.ones(1)).tolist() == [0]
    # A level that rounding has put above 1 is the clean image's too.
    assert angle.time_input(torch.zeros(1), torch.ones(1) + 1e-6).tolist() == [0]


@pytest.mark.parametrize("options, limit", [({}, 1.0), ({"clip": False}, 3.0), ({"percentile": 1.0}, 1.0)])
def test_clipping_and_the_noise_that_fits_to_it(options: dict[str, Any], limit: float) -> None:
    diffusion = _diffusion(prediction="x0")
    x = _randn(1, 1, 2, 2)
    output = torch.tensor([[[[3.0, -0.6], [0.3, 0.0]]]])
    level = diffusion.schedule.level(0.5)
    prediction = diffusion.denoiser(lambda y, time: output, **options)(x, level)
    assert float(prediction.x0.max()) == pytest.approx(limit)
    if "percentile" in options:
        torch.testing.assert_close(prediction.x0, output / 3)
    torch.testing.assert_close(q_sample(prediction.x0, prediction.eps, level.alpha_bar), x)


def test_half_precision_networks_are_read_in_float32() -> None:
    diffusion = _diffusion(variance="learned")
    x = _randn(1, 1, 4, 4)
    prediction = diffusion.denoiser(lambda y, time: torch.cat([y, y], 1).to(torch.bfloat16))(
        x, diffusion.schedule.level(0.5)
    )
    assert prediction.variance is not None
    assert {prediction.x0.dtype, prediction.eps.dtype, prediction.variance.dtype} == {torch.float32}


@pytest.mark.parametrize("values, words", [
    ({"noise_schedule": {"timesteps": None}, "noise_embedding": "step"}, "sqrt-alpha-bar, angle, log-sigma"),
    ({"noise_schedule": {"timesteps": None}, "variance": "learned"}, "allowed here: beta, posterior"),
    ({"noise_schedule": {"continuous": True}, "variance": "learned"}, "allowed here: beta, posterior"),
    ({"noise_schedule": {"timesteps": 1}, "variance": "learned"}, "at least 2 timesteps, got 1"),
    ({"variance": "learned", "min_snr_gamma": 5}, "min_snr_gamma: 5 does not go"),
    ({"min_snr_gamma": 0}, "min_snr_gamma"),
    ({"min_snr_gamma": 1_000_000.5}, "min_snr_gamma"),
    ({"prediction": "edm", "sigma_data": 10.5}, "sigma_data"),
    ({"noise_schedule": {"timesteps": None}, "sigmoid_bias": 20.5}, "sigmoid_bias"),
    ({"noise_schedule": {"timesteps": None}, "sigmoid_bias": -20.5}, "sigmoid_bias"),
    ({"prediction": "noise"}, "prediction"),
    ({"noise_shedule": {}}, "noise_shedule"),
])  # fmt: skip
def test_configurations_that_do_not_fit_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DiffusionConfig.model_validate(values)


@pytest.mark.parametrize("values", [
    {"prediction": "edm", "sigma_data": 10.0},
    {"noise_schedule": {"timesteps": None}, "sigmoid_bias": 20.0},
    {"noise_schedule": {"timesteps": None}, "sigmoid_bias": -20.0},
])  # fmt: skip
def test_the_ends_of_a_range_are_in_it(values: dict[str, Any]) -> None:
    key, value = list(values.items())[-1]
    assert getattr(DiffusionConfig.model_validate(values), key) == value


@pytest.mark.parametrize("gamma", [0.5, 1_000_000])
def test_min_snr_takes_any_weight_that_is_one(gamma: float) -> None:
    assert DiffusionConfig(min_snr_gamma=gamma).min_snr_gamma == gamma


def test_the_bound_is_for_discrete_schedules() -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="discrete"):
        _diffusion(None).bound(x, x, x, x, torch.tensor([0.5]))
