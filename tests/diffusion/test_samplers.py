"""Samplers against a Gaussian whose answer is known in closed form.

Data x_0 ~ N(m, C) over four correlated pixels: the exact denoiser E[x_0 | x_t] is linear, so every sampler is an affine
map of the noise that it is given. Fed with zeros and unit vectors it shows its matrix, and the mean and covariance of
what it returns follow without any sampling error; only the error of finitely many steps is left. One test samples as
users do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import get_args

import pytest
import torch
from torch import Tensor

from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.process import noise_from_image, posterior_mean
from cascaded_diffusion.diffusion.samplers import (
    SAMPLERS,
    Denoiser,
    NoiseSource,
    Prediction,
    SamplerName,
    Step,
    ancestral,
    ddim,
    dpmpp_2m,
    evaluations,
)
from cascaded_diffusion.diffusion.schedule import Level, Schedule, ScheduleConfig
from cascaded_diffusion.randomness import normal

PIXELS = 4
SHAPE = (1, 2, 2)
MEAN = torch.tensor([0.4, -0.3, 0.1, -0.6], dtype=torch.float64)
_ROOT = torch.tensor(
    [[0.5, 0.0, 0.0, 0.0], [0.4, 0.4, 0.0, 0.0], [-0.3, 0.2, 0.3, 0.0], [0.1, -0.5, 0.2, 0.2]], dtype=torch.float64
)
COVARIANCE = _ROOT @ _ROOT.T
EYE = torch.eye(PIXELS, dtype=torch.float64)

DISCRETE = Schedule(ScheduleConfig(timesteps=1000))
CONTINUOUS = Schedule(ScheduleConfig(timesteps=None))
SCHEDULES = {
    "discrete": DISCRETE,
    "continuous": CONTINUOUS,
    "linear": Schedule(ScheduleConfig(kind="linear", timesteps=1000)),
    "linear between steps": Schedule(ScheduleConfig(kind="linear", timesteps=200, continuous=True)),
    "shifted": Schedule(ScheduleConfig(timesteps=None, log_snr_shift=-2.0)),
}


def _covariance_at(level: Level) -> Tensor:
    return level.alpha_bar * COVARIANCE + (1 - level.alpha_bar) * EYE


def exact_denoiser(variance: float | None = None, called: list[Level] | None = None) -> Denoiser:
    """E[x_0 | x_t] = m + sqrt(alpha_bar) C S^-1 (x_t - sqrt(alpha_bar) m), S the covariance of x_t."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        if called is not None:
            called.append(level)
        alpha = math.sqrt(level.alpha_bar)
        gain = alpha * torch.linalg.solve(_covariance_at(level), COVARIANCE)
        x0 = (MEAN + (x.flatten(1).double() - alpha * MEAN) @ gain).reshape(x.shape).to(x)
        learned = None if variance is None else torch.full_like(x, variance)
        return Prediction(x0, noise_from_image(x, x0, level.alpha_bar), learned)

    return denoise


def _no_noise(_: int) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def _basis(draws: int) -> Tensor:
    """(draws, 1 + 4 draws, 1, 2, 2): for each draw, a batch of zeros with a unit vector in four places of its own."""
    basis = torch.zeros(draws, 1 + PIXELS * draws, PIXELS, dtype=torch.float64)
    for draw in range(draws):
        basis[draw, 1 + PIXELS * draw : 1 + PIXELS * (draw + 1)] = EYE
    return basis.reshape(draws, -1, *SHAPE)


def moments(run: Callable[[Tensor, NoiseSource], Tensor], steps: int) -> tuple[Tensor, Tensor]:
    """Mean (4,) and covariance (4, 4) of an affine sampler's output over its starting noise and that of every step."""
    basis = _basis(steps + 1)
    x = run(basis[steps], lambda i: basis[i]).flatten(1)
    response = x[1:] - x[0]
    return x[0], response.T @ response


def _moments_of(case: str, levels: list[Level]) -> tuple[Tensor, Tensor]:
    name, _, option = case.partition(" ")

    def run(x: Tensor, noise: NoiseSource) -> Tensor:
        if case == "ddim eta=1":
            return ddim(exact_denoiser(), x, levels, noise=noise, eta=1.0)
        if option == "beta":
            return ancestral(exact_denoiser(), x, levels, noise=noise, variance="beta")
        return SAMPLERS[name](exact_denoiser(), x, levels, noise=noise)

    return moments(run, len(levels) - 1)


def _errors(case: str, levels: list[Level]) -> tuple[float, float]:
    """Largest error of the mean and of the covariance against q(z_s) = N(sqrt(ab) m, ab C + (1 - ab) I)."""
    mean, covariance = _moments_of(case, levels)
    end = levels[-1]
    return (
        float((mean - math.sqrt(end.alpha_bar) * MEAN).abs().max()),
        float((covariance - _covariance_at(end)).abs().max()),
    )


# Largest error of the covariance (of size 1) that 100 steps may leave: about twice what each sampler shows. The
# posterior's variance is that of a single image, too small for a distribution, and beta's is too large for data
# narrower than noise; both are of first order in the step, as DDIM is; Heun and DPM-Solver++ are of second.
TOLERANCE = {
    "ancestral": 0.05,
    "ancestral beta": 0.02,
    "ddim": 0.03,
    "ddim eta=1": 0.05,
    "heun": 0.001,
    "dpmpp-2m": 0.001,
}


@pytest.mark.parametrize("case", TOLERANCE)
@pytest.mark.parametrize("schedule", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("s", [0.0, 0.001, 0.125, 0.5, 1.0])
def test_samplers_return_z_s_with_its_mean_and_covariance(case: str, schedule: Schedule, s: float) -> None:
    # 97 strides over 1000 steps do not pass k = 125 or 500. Every discrete grid has k = 1; the continuous one does not.
    levels = sampling_grid(schedule, 97, stop=s)
    whole = sampling_grid(schedule, 97)
    if (s, schedule) != (0.001, DISCRETE) and 0 < s < 1:
        assert levels[-1] not in whole
    assert levels[-1] == schedule.level(s)
    mean_error, covariance_error = _errors(case, levels)
    # Sampling starts from N(0, I), not from q(z_T), whose mean is sqrt(alpha_bar(T)) m, up to 3e-5. Stopping one step
    # of 1000 too early or too late would show: at s = 0.125 in the mean (2e-4), at 0.5 in the second-order samplers.
    assert mean_error < 6e-5
    assert covariance_error < TOLERANCE[case]


@pytest.mark.parametrize("case", ["ancestral", "ancestral beta", "ddim", "ddim eta=1"])
@pytest.mark.parametrize("s", [0.0, 0.125, 0.5])
def test_first_order_errors_vanish_with_the_steps(case: str, s: float) -> None:
    """Twice the result of 200 steps less that of 100 cancels what is of first order: the rest is of second."""
    coarse, fine = (_moments_of(case, sampling_grid(CONTINUOUS, steps, stop=s))[1] for steps in (100, 200))
    expected = _covariance_at(CONTINUOUS.level(s))
    halved = (fine - expected).abs().max() / (coarse - expected).abs().max()
    assert 0.45 < halved < 0.55
    assert (2 * fine - coarse - expected).abs().max() < 0.0015


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("s", [0.0, 0.125, 0.5])
def test_thousands_of_samples_have_the_moments_of_q(name: str, schedule: str, s: float) -> None:
    """As users sample, in float32 with keyed noise: within five standard errors and the error of 100 steps."""
    count = 4000
    index = torch.arange(count)
    levels = sampling_grid(SCHEDULES[schedule], 100, stop=s)
    x = SAMPLERS[name](
        exact_denoiser(),
        normal(0, "test/init", index, SHAPE),
        levels,
        noise=lambda i: normal(0, "test/steps", index, SHAPE, step=i),
    )
    assert x.dtype == torch.float32
    z = x.flatten(1).double()
    expected = _covariance_at(levels[-1])
    # A sample mean's variance is C_ii / n; a sample covariance's is (C_ii C_jj + C_ij^2) / n.
    diagonal = expected.diagonal()
    mean_error = (z.mean(dim=0) - math.sqrt(levels[-1].alpha_bar) * MEAN).abs()
    assert (mean_error < 5 * (diagonal / count).sqrt() + 1e-4).all()
    error_of_covariance = ((diagonal[:, None] * diagonal[None] + expected**2) / count).sqrt()
    assert ((torch.cov(z.T) - expected).abs() < 5 * error_of_covariance + TOLERANCE[name]).all()


def _flow(x: Tensor, t: Level, s: Level) -> Tensor:
    """The probability flow of a Gaussian in closed form: each principal axis is scaled by its change of width."""
    values, axes = torch.linalg.eigh(COVARIANCE)
    widths = [(level.alpha_bar * values + 1 - level.alpha_bar).sqrt() for level in (t, s)]
    scale = axes @ torch.diag(widths[1] / widths[0]) @ axes.T
    y = (x.flatten(1) - math.sqrt(t.alpha_bar) * MEAN) @ scale + math.sqrt(s.alpha_bar) * MEAN
    flowed: Tensor = y.reshape(x.shape)
    return flowed


@pytest.mark.parametrize("name, ratio", [("ddim", 2), ("heun", 4), ("dpmpp-2m", 4)])
def test_the_order_of_convergence(name: str, ratio: float) -> None:
    """Doubling the steps halves a first-order method's error along a path and quarters a second-order one's."""
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        # Long and short steps in turn, 3 to 2.
        levels = [CONTINUOUS.level(0.9 - 0.8 * (i + 0.2 * (i % 2)) / steps) for i in range(steps + 1)]
        end = SAMPLERS[name](exact_denoiser(), x, levels, noise=_no_noise)
        errors.append(float((end - _flow(x, levels[0], levels[-1])).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert ratio * 0.85 < coarse / fine < ratio * 1.15


@pytest.mark.parametrize("alpha_bar", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("name", ["heun", "dpmpp-2m", "ddim"])
def test_deterministic_samplers_are_well_behaved_from_pure_noise(name: str, alpha_bar: float) -> None:
    """From log SNR -28 on, without any clipping; in the angle, pure noise is an ordinary point."""
    levels = [Level(alpha_bar, 1.0), *(CONTINUOUS.level(1 - i / 50) for i in range(1, 51))]
    x = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = SAMPLERS[name](exact_denoiser(), x, levels, noise=_no_noise)
    error = (end - _flow(x, levels[0], levels[-1])).abs().max()
    # The error is that of 50 steps, the same wherever the noise begins.
    assert error < {"heun": 0.025, "dpmpp-2m": 0.025, "ddim": 0.1}[name]


def test_float32_agrees_with_float64() -> None:
    x = normal(0, "test", torch.arange(16), SHAPE)
    levels = sampling_grid(DISCRETE, 50)
    for name in ("ddim", "heun", "dpmpp-2m"):
        single, double = (SAMPLERS[name](exact_denoiser(), y, levels, noise=_no_noise) for y in (x, x.double()))
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)


def test_the_steps_of_dpmpp_by_hand() -> None:
    """alpha_bar 1/5, 1/2, 0.64 (half log SNRs -log 2, 0, log(4/3)): the second step extrapolates by h_2 / 2 h_1."""
    levels = [Level(0.2, 0.7), Level(0.5, 0.5), Level(0.64, 0.4)]
    predicted = {0.7: 0.3, 0.5: -0.2}

    def denoise(x: Tensor, level: Level) -> Prediction:
        x0 = torch.full_like(x, predicted[level.time])
        return Prediction(x0, noise_from_image(x, x0, level.alpha_bar))

    x = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)
    end = dpmpp_2m(denoise, x, levels, noise=_no_noise)
    first = math.sqrt(0.5 / 0.8) * 0.9 - math.sqrt(0.5) * (math.exp(-math.log(2)) - 1) * 0.3
    extrapolated = -0.2 + math.log(4 / 3) / (2 * math.log(2)) * (-0.2 - 0.3)
    second = math.sqrt(0.36 / 0.5) * first - 0.8 * (3 / 4 - 1) * extrapolated
    assert float(end) == pytest.approx(second, rel=1e-12)


def test_dpmpp_looks_back_at_what_is_guided_alike() -> None:
    """Four levels, of which the second and third are guided: only the third step, between those two, looks back."""
    levels = [Level(alpha_bar, 1 - alpha_bar) for alpha_bar in (0.1, 0.3, 0.5, 0.7, 0.85)]
    images, guided = (0.3, -0.2, -0.5, 0.4), (False, True, True, False)

    def walk(*, mark: bool) -> list[float]:
        seen: list[float] = []

        def denoise(x: Tensor, level: Level) -> Prediction:
            i = levels.index(level)
            seen.append(float(x))
            x0 = torch.full_like(x, images[i])
            return Prediction(x0, noise_from_image(x, x0, level.alpha_bar), guided=mark and guided[i])

        x = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)
        end = float(dpmpp_2m(denoise, x, levels, noise=_no_noise))
        return [*seen, end]

    def first_order(x: float, i: int) -> float:
        t, s = levels[i : i + 2]
        eps = (x - math.sqrt(t.alpha_bar) * images[i]) / math.sqrt(1 - t.alpha_bar)
        return math.sqrt(s.alpha_bar) * images[i] + math.sqrt(1 - s.alpha_bar) * eps

    found = walk(mark=True)
    at_first_order = [found[i + 1] == pytest.approx(first_order(found[i], i), rel=1e-9) for i in range(4)]
    assert at_first_order == [True, True, False, True]
    plain = walk(mark=False)
    assert [plain[i + 1] == pytest.approx(first_order(plain[i], i), rel=1e-9) for i in range(4)] == [True] + 3 * [False]


def test_eta_scales_the_deviation_of_ddims_noise() -> None:
    """DDIM (2010.02502), eq. 16: sigma is eta times that of the posterior."""
    levels, x = [Level(0.2, 0.7), Level(0.5, 0.5)], torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def denoise(x: Tensor, level: Level) -> Prediction:
        return Prediction(torch.zeros_like(x), torch.zeros_like(x))  # leaves the noise alone

    deviation = math.sqrt(0.5 / 0.8 * (1 - 0.2 / 0.5))
    for eta in (0.0, 0.5, 1.0):
        end = ddim(denoise, x, levels, noise=lambda i: torch.ones_like(x), eta=eta)
        assert float(end) == pytest.approx(eta * deviation)


def test_a_callback_cannot_change_what_others_see() -> None:
    step = Step(0, 1, Level(0.5, 0.5), torch.zeros(1), torch.zeros(1))
    with pytest.raises(FrozenInstanceError):
        step.index = 1  # type: ignore[misc]


def test_dpmpp_does_not_extrapolate_far() -> None:
    """The step down to k = 1 is five times as long in log SNR as the one before it.

    Bimodal pixels, whose predictions saturate, punish extrapolating that far: 10 steps were worse than DDIM's.
    """

    def denoise(x: Tensor, level: Level) -> Prediction:
        # x_0 = -1 or 1 with equal chance, and a little of its own width.
        alpha, width = math.sqrt(level.alpha_bar), 0.05
        spread = level.alpha_bar * width**2 + 1 - level.alpha_bar
        side = torch.tanh(alpha * x / spread)
        x0 = side + alpha * width**2 / spread * (x - alpha * side)
        return Prediction(x0, noise_from_image(x, x0, level.alpha_bar))

    index = torch.arange(2000)
    x = normal(0, "test", index, SHAPE).double()
    levels = sampling_grid(DISCRETE, 10)
    overshoot = {}
    for name in ("ddim", "dpmpp-2m"):
        end = SAMPLERS[name](denoise, x, levels, noise=_no_noise)
        overshoot[name] = float((end.abs() - 1).clamp(min=0.2).mean())
    assert overshoot["dpmpp-2m"] <= overshoot["ddim"] + 0.001


def test_ddim_with_eta_1_is_ancestral_with_the_posteriors_variance() -> None:
    draws = [normal(0, "test", torch.arange(3), SHAPE, step=i).double() for i in range(20)]
    x = normal(1, "test", torch.arange(3), SHAPE).double()
    for stop in (0.0, 0.3):
        levels = sampling_grid(DISCRETE, 20, stop=stop)
        one = ddim(exact_denoiser(), x, levels, noise=lambda i: draws[i], eta=1.0)
        other = ancestral(exact_denoiser(), x, levels, noise=lambda i: draws[i], variance="posterior")
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def _step_std(**options: float | str | None) -> float:
    """Standard deviation that one ancestral step of the levels 0.3 -> 0.7 adds."""
    levels = [Level(0.3, 0.6), Level(0.7, 0.4)]
    v = options.pop("v", None)
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    denoise = exact_denoiser(v if isinstance(v, float) else None)
    with_noise, without = (
        ancestral(denoise, x, levels, noise=lambda i: torch.full_like(x, unit), **options)  # type: ignore[arg-type]  # noqa: B023
        for unit in (1.0, 0.0)
    )
    return float((with_noise - without).mean())


def test_the_variance_of_an_ancestral_step() -> None:
    beta = 1 - 0.3 / 0.7
    posterior = beta * (1 - 0.7) / (1 - 0.3)
    assert _step_std(variance="beta") == pytest.approx(math.sqrt(beta))
    assert _step_std(variance="posterior") == pytest.approx(math.sqrt(posterior))
    assert _step_std() == pytest.approx(math.sqrt(posterior))
    assert _step_std(variance="learned", v=-1.0) == pytest.approx(math.sqrt(posterior))
    assert _step_std(variance="learned", v=1.0) == pytest.approx(math.sqrt(beta))
    assert _step_std(variance="learned", v=0.0) == pytest.approx((beta * posterior) ** 0.25)


def test_learned_variance_needs_a_network_that_gives_it() -> None:
    with pytest.raises(ValueError, match="the denoiser gives no variance output"):
        _step_std(variance="learned")


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_to_the_image_returns_the_prediction_without_noise(name: str) -> None:
    x = normal(0, "test", torch.arange(2), SHAPE).double()
    levels = [Level(0.2, 0.7), Level(1.0, 0.0)]
    expected = exact_denoiser()(x, levels[0]).x0
    torch.testing.assert_close(SAMPLERS[name](exact_denoiser(), x, levels, noise=_no_noise), expected)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("s", [0.0, 1 / 1000, 0.125, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_calls_and_callbacks(name: str, s: float, steps: int) -> None:
    """The network is called only above s, as often as announced; a callback follows every step, in order."""
    levels = sampling_grid(DISCRETE, steps, stop=s)
    called: list[Level] = []
    seen: list[Step] = []
    drawn: list[int] = []
    x = normal(0, "test", torch.arange(2), SHAPE)

    def noise(i: int) -> Tensor:
        drawn.append(i)
        return normal(1, "test", torch.arange(2), SHAPE, step=i)

    end = SAMPLERS[name](exact_denoiser(called=called), x, levels, noise=noise, callback=seen.append)
    assert len(called) == evaluations(name, levels)
    assert all(level.alpha_bar < levels[-1].alpha_bar for level in called)
    assert all(round(level.time * 1000) > round(s * 1000) for level in called)
    assert set(called) == set(levels[:-1])
    total = len(levels) - 1
    assert [(step.index, step.total, step.level) for step in seen] == [(i, total, levels[i + 1]) for i in range(total)]
    if seen:
        assert torch.equal(seen[-1].x, end)
        assert all(step.x0.shape == x.shape for step in seen)
    else:
        assert end is x
    noisy_steps = sum(level.alpha_bar < 1 for level in levels[1:])
    assert drawn == (list(range(noisy_steps)) if name == "ancestral" else [])


def test_evaluations_in_numbers() -> None:
    levels = sampling_grid(DISCRETE, 10)
    assert {name: evaluations(name, levels) for name in SAMPLERS} == {
        "ancestral": 10, "ddim": 10, "heun": 19, "dpmpp-2m": 10,
    }  # fmt: skip
    assert all(evaluations(name, levels[-1:]) == 0 for name in SAMPLERS)


def test_ancestral_steps_follow_the_posterior_mean() -> None:
    x = normal(0, "test", torch.arange(2), SHAPE).double()
    t, s = Level(0.2, 0.7), Level(0.6, 0.4)
    stepped = ancestral(exact_denoiser(), x, [t, s], noise=lambda i: torch.zeros_like(x))
    torch.testing.assert_close(stepped, posterior_mean(exact_denoiser()(x, t).x0, x, t.alpha_bar, s.alpha_bar))


def test_every_name_of_a_sampler_has_its_function() -> None:
    assert tuple(SAMPLERS) == get_args(SamplerName)
