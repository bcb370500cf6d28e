"""Noise schedules against published values and against their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from cascaded_diffusion.diffusion.schedule import Level, Schedule, ScheduleConfig, shift_log_snr

GOLDEN = Path(__file__).parent.parent / "goldens" / "diffusion_cosine_4000.safetensors"


def _schedule(**values: Any) -> Schedule:
    return Schedule(ScheduleConfig(**values))


def _at(schedule: Schedule, *u: float) -> list[float]:
    return [float(value) for value in schedule.alpha_bar(torch.tensor(u, dtype=torch.float64))]


EVERY_KIND: list[dict[str, Any]] = [
    {"timesteps": 4000},
    {"timesteps": 1000, "kind": "linear"},
    {"timesteps": 1000, "log_snr_shift": -2.77},
    {"timesteps": 7},
    {"timesteps": 1},
    {"timesteps": None},
    {"timesteps": None, "kind": "linear"},
    {"timesteps": None, "log_snr_shift": 3.0},
    {"timesteps": 2000, "kind": "linear", "beta_start": 1e-6, "beta_end": 1e-2, "continuous": True},
]


def test_cosine_4000_is_the_golden_one() -> None:
    alphas_cumprod = _schedule(timesteps=4000).alphas_cumprod
    assert alphas_cumprod is not None
    golden = load_file(GOLDEN)["alphas_cumprod"].numpy()
    np.testing.assert_allclose(alphas_cumprod, golden, rtol=1e-6, atol=0)


@pytest.mark.parametrize("s, alpha_bar, tolerance", [
    (100, 0.9975, 5e-5), (250, 0.988, 5e-4), (500, 0.958, 5e-4), (750, 0.910, 5e-4),
    (1000, 0.847, 5e-4), (1250, 0.771, 5e-4), (1500, 0.684, 5e-4), (2000, 0.494, 5e-4),
])  # fmt: skip
def test_the_papers_values_of_s(s: int, alpha_bar: float, tolerance: float) -> None:
    """What is left of the image at the s of 4000 that CDM reports; tolerance: half a unit of the last digit."""
    assert _at(_schedule(timesteps=4000), s / 4000) == pytest.approx([alpha_bar], abs=tolerance)


def test_the_default_linear_schedule_is_ddpms() -> None:
    config = ScheduleConfig(kind="linear")
    assert config.betas == pytest.approx((1e-4, 0.02))
    betas = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
    product, expected = 1.0, []
    for beta in betas:
        product *= 1 - beta
        expected.append(product)
    np.testing.assert_allclose(Schedule(config).alphas_cumprod, expected, rtol=1e-12)  # type: ignore[arg-type]
    assert ScheduleConfig(kind="linear", timesteps=4000).betas == pytest.approx((2.5e-5, 0.005))


def test_sr3s_linear_schedule() -> None:
    table = _schedule(kind="linear", timesteps=2000, beta_start=1e-6, beta_end=1e-2).alphas_cumprod
    assert table is not None
    assert table[0] == pytest.approx(1 - 1e-6, abs=1e-15)
    assert table[-1] / table[-2] == pytest.approx(1 - 1e-2)
    assert 1 - table[1] / table[0] == pytest.approx(1e-6 + (1e-2 - 1e-6) / 1999, rel=1e-6)


def test_betas_of_the_cosine_schedule_are_cut_at_0999() -> None:
    table = _schedule(timesteps=10).alphas_cumprod
    assert table is not None
    assert table[-1] / table[-2] == pytest.approx(0.001)


@pytest.mark.parametrize("values", EVERY_KIND)
def test_alpha_bar_is_exactly_one_at_zero_and_falls_strictly(values: dict[str, Any]) -> None:
    schedule = _schedule(**values)
    assert schedule.level(0.0) == Level(1.0, 0.0)
    steps = schedule.timesteps or 1000
    alpha_bar = schedule.alpha_bar(torch.arange(steps + 1, dtype=torch.float64) / steps)
    assert alpha_bar.dtype == torch.float64
    assert bool((alpha_bar.diff() < 0).all())
    assert alpha_bar[-1] > 0
    assert 1 - alpha_bar[1] > 0


@pytest.mark.parametrize("timesteps", [1, 3, 1000, 4000])
def test_step_k_has_entry_k_minus_1(timesteps: int) -> None:
    schedule = _schedule(timesteps=timesteps)
    table = schedule.alphas_cumprod
    assert table is not None
    k = torch.arange(1, timesteps + 1)
    np.testing.assert_array_equal(schedule.alpha_bar(k / timesteps).numpy(), table)
    assert schedule.level(1.0) == Level(float(table[-1]), 1.0)


def test_discrete_times_round_to_the_nearest_step() -> None:
    schedule = _schedule(timesteps=4)
    u = torch.tensor([0.0, 0.124, 0.125, 0.374, 0.375, 0.62, 0.8, 0.875, 1.0], dtype=torch.float64)
    assert (schedule.snap(u) * 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 4]
    assert schedule.level(0.49).time == 0.5
    table = schedule.alphas_cumprod
    assert table is not None
    assert schedule.level(0.49).alpha_bar == table[1]
    # The paper's "501 of 4000".
    assert _schedule(timesteps=4000).level(0.125).time * 4000 == 500


def test_continuous_cosine_follows_its_formula_within_the_log_snr_clip() -> None:
    schedule = _schedule(timesteps=None)
    assert schedule.timesteps is None
    assert schedule.alphas_cumprod is None
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    for u in (0.001, 0.125, 0.5, 0.9):
        expected = math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 / start
        assert _at(schedule, u) == pytest.approx([expected], rel=1e-12)
    least = 1 / (1 + math.exp(20))
    assert _at(schedule, 1.0) == pytest.approx([least], rel=1e-12, abs=0)
    # The time of what lies beyond is where the formula reaches the clip.
    reached = math.acos(math.sqrt(least * start)) * 2 / math.pi * 1.008 - 0.008
    for beyond in (least / 2, 0.0):
        assert float(schedule.time_of(torch.tensor(beyond))) == pytest.approx(reached, rel=1e-14, abs=0)
    slope = math.pi / 1.008 * math.tan(0.008 / 1.008 * math.pi / 2)  # of -alpha_bar at time 0
    assert float(schedule.time_of(torch.tensor(1.0))) == pytest.approx(least / slope, rel=1e-3)
    assert _at(schedule, 1e-12) == pytest.approx([1 - 1 / (1 + math.exp(20))], rel=1e-15)


def test_continuous_linear_is_the_limit_of_many_steps() -> None:
    u = (0.1, 0.3, 0.7, 1.0)
    fine = _schedule(kind="linear", timesteps=200_000)
    assert _at(_schedule(kind="linear", timesteps=None), *u) == pytest.approx(_at(fine, *u), rel=1e-3)


def test_between_steps_the_square_root_is_linear() -> None:
    """WaveGrad's continuous noise levels."""
    schedule = _schedule(kind="linear", timesteps=10, beta_start=0.01, beta_end=0.2, continuous=True)
    table = schedule.alphas_cumprod
    assert table is not None
    assert schedule.timesteps is None
    roots = [1.0, *np.sqrt(table)]
    for k, share in ((0, 0.5), (3, 0.25), (9, 0.9)):
        expected = (1 - share) * roots[k] + share * roots[k + 1]
        assert _at(schedule, (k + share) / 10) == pytest.approx([expected**2], rel=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar(torch.arange(1, 11).double() / 10).numpy(), table, rtol=1e-12)


def _log_snr(alpha_bar: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(alpha_bar) - np.log1p(-alpha_bar))


@pytest.mark.parametrize("values", [values for values in EVERY_KIND if "log_snr_shift" not in values])
@pytest.mark.parametrize("shift", [-2.7726, 1.5])
def test_shift_adds_to_log_snr(values: dict[str, Any], shift: float) -> None:
    """By 2 log(64/256) = -2.77 for an image four times as wide as 64, say."""
    plain, shifted = _schedule(**values), _schedule(**values, log_snr_shift=shift)
    steps = plain.timesteps or 50
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    if values.get("continuous"):
        u = u[u * 2000 == torch.round(u * 2000)]  # the shift acts on the steps; between them the root is linear
    difference = _log_snr(shifted.alpha_bar(u).numpy()) - _log_snr(plain.alpha_bar(u).numpy())
    np.testing.assert_allclose(difference, shift, atol=1e-6)
    assert shifted.level(0.0).alpha_bar == 1


def test_no_shift_changes_nothing() -> None:
    values = np.array([0.3, 0.9])
    assert shift_log_snr(values, 0.0) is values


@pytest.mark.parametrize("u", [-0.1, 1.1, math.nan])
def test_times_outside_the_unit_interval_are_refused(u: float) -> None:
    with pytest.raises(ValueError, match=r"time must be in \[0, 1\]"):
        _schedule(timesteps=None).alpha_bar(torch.tensor([0.5, u]))


def test_alpha_bar_keeps_the_shape() -> None:
    assert _schedule(timesteps=10).alpha_bar(torch.rand(2, 3, 1)).shape == (2, 3, 1)
    assert _schedule(timesteps=10).alpha_bar(torch.rand(0)).shape == (0,)


@pytest.mark.parametrize("values, words", [
    ({"kind": "cosine", "beta_end": 0.02}, "belong to kind: linear"),
    ({"kind": "linear", "beta_start": 0.03}, "beta_start"),
    ({"kind": "linear", "timesteps": 15}, "beta_end"),
    ({"kind": "linear", "timesteps": 20}, "beta_start <= beta_end < 1 does not hold"),
    ({"kind": "linear", "timesteps": 1000, "beta_end": 0.9}, "alpha_bar"),
    ({"kind": "linear", "timesteps": None, "beta_end": 0.5}, "alpha_bar"),
    ({"kind": "linear", "beta_start": 1e-18}, "beta_start"),
    ({"kind": "quadratic"}, "kind"),
    ({"timesteps": 0}, "timesteps"),
    ({"log_snr_shift": 11}, "log_snr_shift"),
    ({"steps": 100}, "steps"),
])  # fmt: skip
def test_configurations_that_make_no_schedule_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ScheduleConfig(**values)


@pytest.mark.parametrize(("timesteps", "beta", "too_large"), [
    (None, 0.02, 0.02002),  # exp(-1000 beta), and log SNR ends at -20
    (100, 0.498, 0.502),  # (1 - beta)^100, and alpha_bar ends at 1e-30
])  # fmt: skip
def test_how_little_a_linear_schedule_may_leave_of_the_image(
    timesteps: int | None, beta: float, too_large: float
) -> None:
    ScheduleConfig(kind="linear", timesteps=timesteps, beta_start=beta, beta_end=beta)
    with pytest.raises(ValidationError, match=r"beta_end: .* leaves alpha_bar = exp\(-(20|70)\)"):
        ScheduleConfig(kind="linear", timesteps=timesteps, beta_start=too_large, beta_end=too_large)


@pytest.mark.parametrize(("key", "inside", "outside"), [
    ("timesteps", 1_000_000, 1_000_001), ("timesteps", 1, 0),
    ("log_snr_shift", 10.0, 10.5), ("log_snr_shift", -10.0, -10.5),
    ("beta_start", 1e-9, 9e-10), ("beta_end", 0.03, 1.0), ("beta_end", 0.03, 0.0), ("beta_start", 0.01, 1.0),
])  # fmt: skip
def test_the_ranges_of_a_schedule(key: str, inside: float, outside: float) -> None:
    kind = {"kind": "linear"} if key.startswith("beta") else {}
    assert getattr(ScheduleConfig.model_validate(kind | {key: inside}), key) == inside
    with pytest.raises(ValidationError, match=rf"(?s){key}\n.*Input should be"):
        ScheduleConfig.model_validate(kind | {key: outside})


def test_descriptions_tell_schedules_apart() -> None:
    described = [ScheduleConfig(**values).describe() for values in EVERY_KIND]
    assert described[0] == "cosine T=4000"
    assert described[-1] == "linear T=2000 beta 1e-06..0.01 between steps too"
    assert len(set(described)) == len(described)


def test_the_slope_of_log_snr_from_end_to_end() -> None:
    """Linear in beta: d log(alpha_bar) / du = -1000 beta(u)."""
    schedule = _schedule(timesteps=None, kind="linear")
    u = torch.tensor([0.3, 1.0], dtype=torch.float64)
    falls = 1000 * (1e-4 + (0.02 - 1e-4) * u)
    torch.testing.assert_close(schedule.log_snr_slope(u), falls / (1 - schedule.alpha_bar(u)), rtol=1e-4, atol=0)
    # At 0 it is infinite; there the mean between 5e-6 and 1e-5 stands for it.
    near = schedule.alpha_bar(torch.tensor([5e-6, 1e-5], dtype=torch.float64))
    log_snr = torch.log(near) - torch.log1p(-near)
    found = schedule.log_snr_slope(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(found, (log_snr[:1] - log_snr[1:]) / 5e-6)
    # Where the cosine is cut off the level stands still.
    assert _schedule(timesteps=None).log_snr_slope(torch.ones(1)).item() == 1e-6
