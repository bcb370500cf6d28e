"""sigma and alpha_bar, log-normal training levels, grids in sigma, and the weights that go with them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cascaded_diffusion.diffusion.denoiser import Diffusion, DiffusionConfig
from cascaded_diffusion.diffusion.grid import SigmaGrid, sampling_grid
from cascaded_diffusion.diffusion.levels import (
    LogNormalLevels,
    alpha_bar_of,
    log_sigma,
    rho_sigmas,
    sigma_levels,
    sigma_of,
)
from cascaded_diffusion.diffusion.losses import sigmoid_weight
from cascaded_diffusion.diffusion.schedule import Level, Schedule, ScheduleConfig
from cascaded_diffusion.errors import UserError


def _schedule(**values: Any) -> Schedule:
    return Schedule(ScheduleConfig(**{"timesteps": None, **values}))


SCHEDULES = [
    {},
    {"kind": "linear"},
    {"log_snr_shift": -1.5},
    {"kind": "linear", "beta_start": 0.005, "beta_end": 0.005},
    {"timesteps": 50, "continuous": True},
]


@pytest.mark.parametrize("values", SCHEDULES)
def test_time_of_is_alpha_bars_inverse(values: dict[str, Any]) -> None:
    schedule = _schedule(**values)
    times = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)
    torch.testing.assert_close(schedule.time_of(schedule.alpha_bar(times)), times, rtol=1e-6, atol=1e-9)


def test_time_of_keeps_to_the_schedules_range_and_steps() -> None:
    beyond = torch.tensor([1 - 1e-15, 1e-15], dtype=torch.float64)
    for clean, noisy in ((beyond[0], beyond[1]), (1.0, 0.0)):
        found = _schedule(kind="linear").time_of(torch.tensor([clean, noisy], dtype=torch.float64))
        assert 0 < found[0] < 1e-4
        assert found[1] == 1
    discrete = _schedule(timesteps=10)
    assert discrete.time_of(beyond).tolist() == [0.1, 1.0]
    steps = torch.arange(1, 11, dtype=torch.float64) / 10
    assert discrete.time_of(discrete.alpha_bar(steps) * 0.9999).tolist() == steps.tolist()


def test_sigma_and_alpha_bar() -> None:
    assert sigma_of(0.5) == 1
    assert sigma_of(1.0) == 0
    assert alpha_bar_of(80.0) == pytest.approx(1 / 6401)
    assert sigma_of(alpha_bar_of(0.3)) == pytest.approx(0.3)
    values = log_sigma(torch.tensor([0.5, 1 / 17, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(values, torch.tensor([0.0, math.log(4), -50.0, 50.0], dtype=torch.float64))


def test_log_normal_levels_have_the_papers_quantiles() -> None:
    u = torch.tensor([0.5, 0.15865525393145707, 0.9772498680518208, 0.0, 1.0], dtype=torch.float64)
    schedule = _schedule()
    alpha_bar = schedule.alpha_bar(LogNormalLevels().times(u, schedule))
    # Median, one deviation below, two above: ln(sigma) = -1.2 + 1.2 z. A uniform of 0 counts as 2^-33, and one
    # that was rounded to 1 as so much less.
    expected = torch.tensor([-1.2, -2.4, 1.2], dtype=torch.float64)
    torch.testing.assert_close(log_sigma(alpha_bar)[:3], expected, rtol=1e-6, atol=1e-6)
    furthest = torch.tensor([-1.2 - 1.2 * 6.33804, -1.2 + 1.2 * 6.33804], dtype=torch.float64)
    torch.testing.assert_close(log_sigma(alpha_bar)[3:], furthest, rtol=0, atol=1e-3)


@pytest.mark.parametrize("key, end", [("p_mean", -10.0), ("p_mean", 10.0), ("p_std", 10.0)])
def test_the_range_of_log_normal_levels(key: str, end: float) -> None:
    assert getattr(LogNormalLevels.model_validate({key: end}), key) == end
    with pytest.raises(ValidationError, match=key):
        LogNormalLevels.model_validate({key: 1.05 * end})


def test_no_spread_is_refused() -> None:
    with pytest.raises(ValidationError, match="p_std"):
        LogNormalLevels(p_std=0)


def test_training_draws_them_where_it_is_told_to() -> None:
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for schedule, slack in (({"timesteps": None}, 1e-2), ({"timesteps": 4000}, 2e-2)):
        diffusion = Diffusion(
            DiffusionConfig.model_validate({"noise_schedule": schedule, "log_normal": {"p_mean": -0.4, "p_std": 1.0}})
        )
        drawn = log_sigma(diffusion.schedule.alpha_bar(diffusion.draw_times(u)))
        assert drawn.mean().item() == pytest.approx(-0.4, abs=slack)
        assert drawn.std().item() == pytest.approx(1.0, abs=slack)


def test_rho_sigmas_are_eq_5() -> None:
    found = rho_sigmas(18, 0.002, 80.0, 7.0)
    assert (found[0], found[-1]) == (pytest.approx(80), pytest.approx(0.002))
    expected = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert found[5] == pytest.approx(expected)
    even = rho_sigmas(5, 0.01, 100.0, None)
    assert even == pytest.approx([100, 10, 1, 0.1, 0.01])
    assert rho_sigmas(1, 0.01, 100.0, 7.0) == pytest.approx([100])


@pytest.mark.parametrize("rho", [7.0, None])
def test_a_sigma_grid_holds_its_levels_and_the_stop(rho: float | None) -> None:
    schedule = _schedule()
    grid = sampling_grid(schedule, 9, sigmas=SigmaGrid(0.002, 80.0, rho))
    assert [sigma_of(level.alpha_bar) for level in grid[:-1]] == pytest.approx(rho_sigmas(9, 0.002, 80.0, rho))
    assert grid[-1] == Level(1.0, 0.0)
    again = schedule.alpha_bar(torch.tensor([level.time for level in grid], dtype=torch.float64))
    torch.testing.assert_close(again, torch.tensor([level.alpha_bar for level in grid], dtype=torch.float64))
    stopped = sampling_grid(schedule, 9, sigmas=SigmaGrid(0.002, 80.0, rho), stop=0.4)
    assert stopped[-1] == schedule.level(0.4)
    assert stopped[:-1] == [level for level in grid if level.alpha_bar < stopped[-1].alpha_bar]


def test_a_sigma_grid_that_the_schedule_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"sigma_range: 300 is above 15.*where the stage's noise schedule ends"):
        sampling_grid(_schedule(kind="linear"), 5, sigmas=SigmaGrid(0.002, 300.0, 7.0))
    with pytest.raises(UserError, match=r"grid: .* continuous time"):
        sampling_grid(_schedule(timesteps=10), 5, sigmas=SigmaGrid(0.002, 80.0, 7.0))


def test_a_sigma_grid_may_begin_where_the_schedule_ends() -> None:
    schedule = _schedule(kind="linear")
    noisiest = sigma_of(schedule.level(1.0).alpha_bar)
    for high in (noisiest, noisiest * (1 + 1e-9)):  # rounding is no reason to refuse
        levels = sampling_grid(schedule, 3, sigmas=SigmaGrid(0.01, high, 7.0))
        assert sigma_of(levels[0].alpha_bar) == pytest.approx(noisiest)


@pytest.mark.parametrize("timesteps", [None, 20])
def test_a_grid_that_starts_late_keeps_the_levels_below(timesteps: int | None) -> None:
    schedule = _schedule(timesteps=timesteps)
    whole, late = sampling_grid(schedule, 10), sampling_grid(schedule, 10, start=0.65)
    assert late[0] == schedule.level(0.65)
    assert late[1:] == [level for level in whole if level.alpha_bar > late[0].alpha_bar]
    assert len(late) < len(whole)
    assert sampling_grid(schedule, 10, start=1.0) == whole
    for i in range(1, 10):  # a start that is one of the levels is there once
        assert sampling_grid(schedule, 10, start=whole[i].time) == whole[i:]
    if timesteps is None:  # a grid that begins elsewhere than the schedule does not move to it
        sigmas = SigmaGrid(0.01, 20.0, 7.0)
        assert sampling_grid(schedule, 5, sigmas=sigmas, start=1.0) == sampling_grid(schedule, 5, sigmas=sigmas)
    both = sampling_grid(schedule, 10, start=0.65, stop=0.2)
    assert (both[0], both[-1]) == (schedule.level(0.65), schedule.level(0.2))
    assert sampling_grid(schedule, 5, start=0.3, stop=0.2) == [schedule.level(0.3), schedule.level(0.2)]
    with pytest.raises(UserError, match=r"start: 0.2 is not above 0.2, where the stage stops"):
        sampling_grid(schedule, 10, start=0.2, stop=0.2)


def test_sigmoid_weight_weighs_eps_whatever_is_predicted() -> None:
    ab = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    snr = ab / (1 - ab)
    wanted = 1 / (1 + snr * math.exp(1.0))  # sigmoid(-1 - log SNR)
    # One error d in x_0 is d sqrt(snr) in eps, d / sqrt(1 - ab) in v, and d / c_out in EDM's F.
    sigma2 = 1 / snr
    error = {"eps": snr, "x0": 1, "v": 1 / (1 - ab), "edm": (sigma2 + 0.25) / (sigma2 * 0.25)}
    for kind, squared in error.items():
        found = sigmoid_weight(kind, ab, -1.0, sigma_data=0.5) * squared  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted * snr)


def test_sigmoid_loss_is_one_integral_whatever_levels_are_drawn() -> None:
    """v off by 1/2: eps is off by sigmoid(l)/4 at log SNR l, and sigmoid(b - l) sigmoid(l) integrates to b/(1-e^-b)."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    bias = 0.7
    for more in ({}, {"log_normal": {"p_mean": -0.6, "p_std": 2.5}}):
        values = {"noise_schedule": {"timesteps": None}, "prediction": "v", "sigmoid_bias": bias, **more}
        diffusion = Diffusion(DiffusionConfig.model_validate(values))
        times = diffusion.draw_times(u)
        noise = torch.randn(len(u), 1, 1, 1, generator=torch.Generator().manual_seed(0))
        target = diffusion.schedule.alpha_bar(times).sqrt().reshape(-1, 1, 1, 1).float() * noise  # of a black image

        def half_off(x: torch.Tensor, _: torch.Tensor, target: torch.Tensor = target) -> torch.Tensor:
            return target + 0.5

        found = diffusion.training_loss(half_off, torch.zeros_like(noise), noise, times).double()
        assert found.mean().item() == pytest.approx(bias / (1 - math.exp(-bias)) / 4, rel=0.01)


def test_sigmas_that_a_schedule_does_not_reach_are_refused() -> None:
    schedule = Schedule(ScheduleConfig(kind="cosine", timesteps=None, log_snr_shift=-10))
    cleanest = math.exp(-5)  # sigma at log SNR 20 - 10
    with pytest.raises(UserError, match=r"sigma_range: 0\.002 is below .*, where the stage's noise schedule begins"):
        sigma_levels(schedule, 5, (0.002, 80.0), 7.0)
    assert sigma_levels(schedule, 5, (cleanest, 80.0), 7.0)[-1].time == pytest.approx(0, abs=1e-6)
