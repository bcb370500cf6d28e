"""Sampling grids: which steps are taken, and where they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cascaded_diffusion.diffusion.grid import (
    even_steps,
    extension_grid,
    sampling_grid,
    sectioned_steps,
    strided_steps,
)
from cascaded_diffusion.diffusion.schedule import Level, Schedule, ScheduleConfig
from cascaded_diffusion.errors import UserError

GOLDEN = Path(__file__).parent.parent / "goldens" / "diffusion_cosine_4000.safetensors"
STOPS = [0.0, 1 / 1000, 0.125, 0.1254, 0.5, 0.999, 1.0]


def _schedule(timesteps: int | None = 1000, **values: Any) -> Schedule:
    return Schedule(ScheduleConfig(timesteps=timesteps, **values))


def _steps(levels: list[Level], timesteps: int) -> list[int]:
    return [round(level.time * timesteps) for level in levels]


def test_even_steps_keep_both_ends() -> None:
    assert even_steps(1000, 5) == [1, 251, 501, 750, 1000]  # 1 + round(i 249.75), a half to even
    assert even_steps(10, 10) == list(range(1, 11))
    assert even_steps(4000, 2) == [1, 4000]
    assert even_steps(1000, 1) == [1000]


def test_even_steps_are_the_golden_respacing() -> None:
    golden = load_file(GOLDEN)
    levels = sampling_grid(_schedule(4000), 50)
    assert levels[-1] == Level(1.0, 0.0)
    ascending = levels[-2::-1]
    assert _steps(ascending, 4000) == (golden["respaced_timesteps"] + 1).tolist()
    expected = golden["respaced_alphas_cumprod"].numpy()
    np.testing.assert_allclose([level.alpha_bar for level in ascending], expected, rtol=1e-6)


def test_sections_by_hand() -> None:
    # Equal sections of 10; strides 9, 9/2 and 9/3.
    assert sectioned_steps(30, [2, 3, 4]) == [1, 10, 11, 15, 20, 21, 24, 27, 30]
    # 11 = 4 + 4 + 3: the remainder goes to the first sections.
    assert sectioned_steps(11, [2, 2, 2]) == [1, 4, 5, 8, 9, 11]
    # A section of one step takes its first.
    assert sectioned_steps(12, [1, 3, 1]) == [1, 5, 7, 8, 9]
    assert sectioned_steps(6, [2, 2, 2]) == [1, 2, 3, 4, 5, 6]


def test_sections_of_a_thousand_as_guided_diffusion_cuts_them() -> None:
    steps = sectioned_steps(1000, [10, 20, 30])
    assert len(steps) == 60
    # Sections of 334, 333 and 333 steps begin at 1, 335 and 668, with strides 333/9 = 37, 332/19 and 332/29.
    assert steps[:10] == [1, 38, 75, 112, 149, 186, 223, 260, 297, 334]
    assert steps[10:14] == [335, 352, 370, 387]
    assert steps[29] == 667
    assert steps[30:33] == [668, 679, 691]
    assert steps[-1] == 1000


def test_sections_that_start_without_noise_are_refused() -> None:
    with pytest.raises(UserError, match=r"steps: 10,1 has one step in the last section; allowed there: 2 or more"):
        sampling_grid(_schedule(100), "10,1")


def test_two_numbers_are_two_sections() -> None:
    levels = sampling_grid(_schedule(9), "2,3")
    assert [round(9 * level.time) for level in levels] == [9, 8, 6, 5, 1, 0]


def test_integer_strides_by_hand() -> None:
    assert strided_steps(1000, 25) == list(range(1, 1000, 40))
    assert strided_steps(1000, 50) == list(range(1, 1000, 20))
    assert strided_steps(1000, 100) == list(range(1, 1000, 10))
    assert strided_steps(1000, 250) == list(range(1, 1000, 4))
    assert strided_steps(1000, 1000) == list(range(1, 1001))
    # 1, 8, ..., 99: a stride of 7 gives 15 of 100, one of 6 would give 17.
    assert strided_steps(100, 15) == list(range(1, 100, 7))
    assert strided_steps(1, 1) == [1]


@pytest.mark.parametrize("timesteps, steps, words", [
    (1000, 0, "steps: 0 is not allowed"),
    (1000, -3, "steps: -3 is not allowed"),
    (1000, "ten", "'ten' is not allowed"),
    (1000, "", "not allowed"),
    (1000, "10,,3", "not allowed"),
    (1000, "1.5", "not allowed"),
    (1000, "ddim", "not allowed"),
    (1000, "ddim0", "not allowed"),
    (1000, "\u0661\u0660", "not allowed"),
    (1000, 1001, "1001 is more than the T=1000 that the stage was trained with; allowed 1 to 1000"),
    (9, "4,3,2", "section 1 has 3 steps, 4 were asked for"),
    (1000, "ddim999", "the nearest allowed: ddim1000 or ddim500"),
    (1000, "ddim400", "the nearest allowed: ddim500 or ddim334"),
    (1000, "ddim1", "nearest allowed: ddim2"),
    (2, "ddim1", "nearest allowed: ddim2"),
    (1000, "ddim2000", "nearest allowed: ddim1000"),
    (None, "10,20", "needs a discrete stage"),
    (None, "ddim10", "needs a discrete stage"),
    (None, 10**9, "allowed 1 to 10000"),
])  # fmt: skip
def test_steps_that_do_not_exist_are_refused_in_one_line(timesteps: int | None, steps: int | str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        sampling_grid(_schedule(timesteps), steps)
    assert "\n" not in str(caught.value)


def test_a_time_that_is_no_whole_step_in_floating_point_stops_at_the_right_one() -> None:
    """1001 / 4000 * 4000 is below 1001."""
    levels = sampling_grid(_schedule(4000), 4000, stop=1001 / 4000)
    assert _steps(levels, 4000) == list(range(4000, 1000, -1))


@pytest.mark.parametrize("stop", [-0.01, 1.01, float("nan")])
def test_s_outside_the_unit_interval_is_refused(stop: float) -> None:
    with pytest.raises(UserError, match=r"s: .* is not in \[0, 1\]"):
        sampling_grid(_schedule(), 10, stop=stop)


@pytest.mark.parametrize("steps", [1, 7, 100, 1000, "10,20,30", "ddim25"])
@pytest.mark.parametrize("stop", STOPS)
def test_discrete_grids_end_exactly_at_s_and_call_only_above_it(steps: int | str, stop: float) -> None:
    schedule = _schedule()
    k_stop = int(stop * 1000 + 0.5)
    first = _steps(sampling_grid(schedule, steps)[:-1], 1000)[0]
    if k_stop < 1000 and first <= k_stop:  # no step would be taken: noise would be handed on
        with pytest.raises(UserError, match=rf"s: {stop:g} is not below {first / 1000:g}, where these steps begin"):
            sampling_grid(schedule, steps, stop=stop)
        return
    levels = sampling_grid(schedule, steps, stop=stop)
    called, end = _steps(levels[:-1], 1000), levels[-1]
    assert end == schedule.level(k_stop / 1000)
    assert all(k > k_stop for k in called)
    assert called == sorted(called, reverse=True)
    whole = _steps(sampling_grid(schedule, steps)[:-1], 1000)
    assert called == [k for k in whole if k > k_stop]
    alpha_bars = [level.alpha_bar for level in levels]
    assert alpha_bars == sorted(set(alpha_bars))


@pytest.mark.parametrize("values", [
    {}, {"kind": "linear"}, {"log_snr_shift": -5.5},
    {"timesteps": 2000, "kind": "linear", "beta_start": 1e-6, "beta_end": 1e-2, "continuous": True},
])  # fmt: skip
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("endpoints", [None, (1e-4, 0.15)])
@pytest.mark.parametrize("steps", [1, 10, 64])
def test_continuous_grids_end_exactly_at_s_and_call_only_above_it(
    values: dict[str, Any], stop: float, endpoints: tuple[float, float] | None, steps: int
) -> None:
    schedule = _schedule(**{"timesteps": None, **values})
    end = schedule.level(stop)
    noisiest = sampling_grid(schedule, steps, endpoints=endpoints)[0]
    if stop < 1 and noisiest.alpha_bar >= end.alpha_bar:  # no step would be taken: noise would be handed on
        with pytest.raises(UserError, match="where these steps begin"):
            sampling_grid(schedule, steps, stop=stop, endpoints=endpoints)
        return
    levels = sampling_grid(schedule, steps, stop=stop, endpoints=endpoints)
    assert levels[-1] == end
    alpha_bars = [level.alpha_bar for level in levels]
    assert alpha_bars == sorted(set(alpha_bars))
    if endpoints is None:
        expected = [1 - i / steps for i in range(steps) if 1 - i / steps > stop]
        assert [level.time for level in levels[:-1]] == pytest.approx(expected)


def test_a_grid_that_stops_nowhere_has_one_level_and_no_call() -> None:
    for schedule, endpoints in ((_schedule(), None), (_schedule(None), None), (_schedule(None), (1e-4, 0.9))):
        assert sampling_grid(schedule, 10, stop=1.0, endpoints=endpoints) == [schedule.level(1.0)]
    # Nor if the sampling schedule goes on to more noise than the stage's own.
    schedule = _schedule(None, kind="linear")
    assert sampling_grid(schedule, 10, endpoints=(0.5, 0.99))[0].alpha_bar < schedule.level(1.0).alpha_bar
    assert sampling_grid(schedule, 10, stop=1.0, endpoints=(0.5, 0.99)) == [schedule.level(1.0)]


def test_the_finest_continuous_grid_has_levels_apart() -> None:
    alpha_bars = np.array([level.alpha_bar for level in sampling_grid(_schedule(None), 10_000)])
    assert (np.diff(alpha_bars) > 0).all()


def test_endpoints_make_a_linear_schedule_of_their_own() -> None:
    levels = sampling_grid(_schedule(None), 4, endpoints=(0.1, 0.4))
    kept = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, 0.9 * 0.8 * 0.7 * 0.6]
    assert [level.alpha_bar for level in levels] == pytest.approx([*reversed(kept), 1.0])
    assert [level.time for level in levels] == [1.0, 0.75, 0.5, 0.25, 0.0]  # of its own schedule
    assert levels[-1] == Level(1.0, 0.0)


def test_endpoints_that_leave_nothing_of_the_image_are_refused() -> None:
    with pytest.raises(UserError, match=r"endpoints: 0\.1 and 0\.9 leave alpha_bar = 0 after 2000 steps"):
        sampling_grid(_schedule(None), 2000, endpoints=(0.1, 0.9))


@pytest.mark.parametrize("hundredths", range(2, 100, 2))
def test_a_level_is_not_visited_twice_for_rounding(hundredths: int) -> None:
    """1 - 29/50 is not quite 0.42, nor 1 - 27/50 quite 0.46."""
    schedule, time = _schedule(None), hundredths / 100
    assert len(sampling_grid(schedule, 50, stop=time)) == 50 - hundredths // 2 + 1
    assert len(sampling_grid(schedule, 50, start=time)) == hundredths // 2 + 1


def test_endpoints_need_continuous_time() -> None:
    with pytest.raises(UserError, match="needs a stage trained in continuous time"):
        sampling_grid(_schedule(), 10, endpoints=(0.1, 0.4))


def test_the_extension_restarts_at_half_time() -> None:
    schedule = _schedule()
    levels = sampling_grid(schedule, 8)
    again = extension_grid(schedule, levels)
    assert _steps(levels, 1000) == [1000, 857, 715, 572, 429, 286, 144, 1, 0]
    assert _steps(again, 1000) == [500, 429, 286, 144, 1, 0]
    # A level at half time is not visited twice.
    assert _steps(extension_grid(schedule, sampling_grid(schedule, "ddim4")), 1000) == [500, 251, 1, 0]
    assert _steps(extension_grid(schedule, [schedule.level(1.0), schedule.level(0.5), schedule.level(0.0)]), 1000) == [
        500,
        0,
    ]


def test_the_extension_ends_at_s_too() -> None:
    schedule = _schedule(None)
    again = extension_grid(schedule, sampling_grid(schedule, 10, stop=0.125))
    assert [level.time for level in again] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.125])
    for stop in (0.5, 0.7):
        with pytest.raises(UserError, match=r"s must be below 0\.5"):
            extension_grid(schedule, sampling_grid(schedule, 10, stop=stop))


def test_times_need_not_be_on_the_grid_of_torch_floats() -> None:
    """s comes from users in decimal: 0.3 is not a binary fraction, and k must be 300 all the same."""
    schedule = _schedule()
    for k in range(1001):
        assert _steps(sampling_grid(schedule, 1, stop=k / 1000), 1000)[-1] == k
        assert round(float(schedule.snap(torch.tensor(k / 1000, dtype=torch.float64))) * 1000) == k
