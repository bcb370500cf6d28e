"""Which noise levels a sampler visits.

A grid is a list of levels from noise to image (or to z_s when truncated). The network is called at every level but the
last, so a grid of n levels costs n - 1 calls of a first-order sampler.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cascaded_diffusion.diffusion.levels import sigma_levels
from cascaded_diffusion.diffusion.schedule import Level, Schedule
from cascaded_diffusion.errors import UserError

__all__ = [
    "SigmaGrid",
    "Steps",
    "discrete_steps",
    "even_steps",
    "extension_grid",
    "sampling_grid",
    "sectioned_steps",
    "strided_steps",
]

Steps = int | str
"""A number of steps, or for discrete schedules ``"10,20,30"`` (sections) or ``"ddimN"`` (an integer stride)."""


_LEAST_ALPHA_BAR = 1e-30
"""Below this the image is lost to float64, and x_0 = (z - sigma eps) / alpha with it."""


class SigmaGrid(NamedTuple):
    """Levels even in sigma^(1/rho) (EDM, 2206.00364, eq. 5), or with rho = None in log SNR, between two sigmas."""

    low: float
    high: float
    rho: float | None


_MOST_STEPS = 10_000
"""Of a stage in continuous time; more would come too close for float64 to tell their levels apart."""


def even_steps(timesteps: int, count: int) -> list[int]:
    """``count`` of the steps 1..T, ascending, both ends kept: step i is 1 + round(i (T-1)/(count-1))."""
    if count == 1:
        return [timesteps]  # the only single step that starts from noise
    return [1 + round(i * (timesteps - 1) / (count - 1)) for i in range(count)]


def sectioned_steps(timesteps: int, counts: Sequence[int]) -> list[int]:
    """Cut 1..T into equal sections and spread ``counts[i]`` steps over the i-th: the ``10,20,30`` of guided-diffusion.

    The first section is the one next to the image. Earlier sections are one longer where T does not divide.
    """
    size, extra = divmod(timesteps, len(counts))
    steps: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if count > length:
            raise UserError(f"steps: section {i + 1} has {length} steps, {count} were asked for; allowed 1 to {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        steps += [1 + start + round(j * stride) for j in range(count)]
        start += length
    return steps


def strided_steps(timesteps: int, count: int) -> list[int]:
    """The steps 1, 1 + n, 1 + 2n, ... with the smallest integer stride n that gives exactly ``count`` of them.

    This is guided-diffusion's ``ddimN``. A stride that leaves step 1 alone is not allowed, for that is no noise to
    start from.
    """
    lengths: list[int] = []
    for stride in range(1, max(timesteps, 2)):
        lengths.append(len(range(0, timesteps, stride)))
        if lengths[-1] == count:
            return list(range(1, timesteps + 1, stride))
        if lengths[-1] < count:
            break
    allowed = " or ".join(f"ddim{n}" for n in lengths[-2:])
    raise UserError(f"steps: ddim{count} needs an integer stride over T={timesteps}; the nearest allowed: {allowed}")


def _positive(word: str, given: Steps) -> int:
    if not word.strip().isascii() or not word.strip().isdigit() or int(word) < 1:
        raise UserError(f"steps: {given!r} is not allowed; give a number from 1, sections such as 10,20,30, or ddimN")
    return int(word)


def discrete_steps(timesteps: int, steps: Steps) -> list[int]:
    """The steps among 1..T, ascending, that a number, sections or ``ddimN`` stand for; ``UserError`` if they cannot."""
    text = str(steps)
    if text.startswith("ddim"):
        return strided_steps(timesteps, _positive(text[4:], steps))
    counts = [_positive(word, steps) for word in text.split(",")]
    if len(counts) > 1:
        if counts[-1] == 1:
            # It would be the section's first step, far from the noise that sampling starts from.
            raise UserError(f"steps: {steps} has one step in the last section; allowed there: 2 or more")
        return sectioned_steps(timesteps, counts)
    if counts[0] > timesteps:
        raise UserError(
            f"steps: {steps} is more than the T={timesteps} that the stage was trained with; allowed 1 to {timesteps}"
        )
    return even_steps(timesteps, counts[0])


def _continuous_levels(
    schedule: Schedule, steps: Steps, endpoints: tuple[float, float] | None, sigmas: SigmaGrid | None
) -> list[Level]:
    text = str(steps)
    if "," in text or text.startswith("ddim"):
        raise UserError(f"steps: {steps!r} needs a discrete stage; a stage in continuous time takes a number from 1")
    count = _positive(text, steps)
    if count > _MOST_STEPS:
        raise UserError(f"steps: {steps} is too many for a stage in continuous time; allowed 1 to {_MOST_STEPS}")
    if sigmas is not None:
        return sigma_levels(schedule, count, (sigmas.low, sigmas.high), sigmas.rho)
    if endpoints is None:
        return [schedule.level(1 - i / count) for i in range(count)]
    # SR3 (2104.07636), section 2.3: a linear schedule of its own, with two end points found by search.
    alpha_bars = np.cumprod(1 - np.linspace(*endpoints, count))
    if alpha_bars[-1] < _LEAST_ALPHA_BAR:
        raise UserError(
            f"endpoints: {endpoints[0]:g} and {endpoints[1]:g} leave alpha_bar = {alpha_bars[-1]:.2g} after {count} "
            f"steps; allowed from {_LEAST_ALPHA_BAR:g}: fewer steps, or smaller betas"
        )
    return [Level(float(alpha_bars[k - 1]), k / count) for k in range(count, 0, -1)]


def sampling_grid(
    schedule: Schedule,
    steps: Steps,
    *,
    stop: float = 0.0,
    endpoints: tuple[float, float] | None = None,
    sigmas: SigmaGrid | None = None,
    start: float | None = None,
) -> list[Level]:
    """The levels from noise, or from time ``start``, down to time ``stop``.

    ``stop`` ends the grid even where the strides would jump over it.

    Args:
        schedule: the stage's training schedule.
        steps: how many steps over the whole range; for a discrete schedule also ``"10,20,30"`` (sections, the first
            next to the image) or ``"ddimN"`` (an integer stride). A truncated grid keeps only those above ``stop``.
        stop: s in [0, 1]; the last level is exactly the schedule's level at s. With stop = 1 it is the only level.
        endpoints: first and last beta of a linear sampling schedule, for stages in continuous time.
        sigmas: levels even in sigma^(1/rho) or log SNR in place of even in time, for stages in continuous time.
        start: the grid begins exactly at the schedule's level at this time and keeps those below it, so that steps
            stay what they are counted in: the whole range.

    Raises:
        UserError: steps or end points that the schedule does not have, or of which none is above ``stop``.
    """
    if not 0 <= stop <= 1:
        raise UserError(f"s: {stop} is not in [0, 1]")
    levels = _whole_grid(schedule, steps, stop, endpoints, sigmas)
    if len(levels) == 1 and stop < 1:  # what is handed on would be noise that nothing was taken from
        begins = _whole_grid(schedule, steps, 0.0, endpoints, sigmas)[0].time
        raise UserError(f"s: {stop:g} is not below {begins:g}, where these steps begin")
    if start is None or start == 1:
        return levels
    top = schedule.level(start)
    if top.alpha_bar >= levels[-1].alpha_bar:
        raise UserError(f"start: {start:g} is not above {levels[-1].time:g}, where the stage stops")
    return _from(top, levels)


def _from(top: Level, levels: Sequence[Level]) -> list[Level]:
    """A level and those of a grid below it."""
    return [top, *(level for level in levels if _is_above(level.alpha_bar, top.alpha_bar))]


def _is_above(alpha_bar: float, other: float) -> bool:
    """Whether a level is nearer to the image than another by more than rounding: 1 - 29/50 is not quite 0.42."""
    return alpha_bar > other and not math.isclose(alpha_bar, other, rel_tol=1e-12, abs_tol=0)


def _whole_grid(
    schedule: Schedule,
    steps: Steps,
    stop: float,
    endpoints: tuple[float, float] | None,
    sigmas: SigmaGrid | None,
) -> list[Level]:
    """:func:`sampling_grid` from noise."""
    end = schedule.level(stop)
    timesteps = schedule.timesteps
    if stop == 1:
        return [end]
    if timesteps is None:
        levels = _continuous_levels(schedule, steps, endpoints, sigmas)
        return [level for level in levels if _is_above(end.alpha_bar, level.alpha_bar)] + [end]
    if endpoints is not None:
        raise UserError("endpoints: a sampling schedule of its own needs a stage trained in continuous time")
    if sigmas is not None:
        raise UserError("grid: levels even in sigma or log SNR need a stage trained in continuous time")
    k_stop = round(end.time * timesteps)
    ascending = discrete_steps(timesteps, steps)
    kept = ascending[bisect.bisect_right(ascending, k_stop) :]
    return [schedule.level(k / timesteps) for k in reversed(kept)] + [end]


def extension_grid(schedule: Schedule, levels: Sequence[Level], start: float = 0.5) -> list[Level]:
    """The part of a grid below time ``start``: the sampling-step extension re-noises z_0 to there and runs it again."""
    top = schedule.level(start)
    if levels[-1].alpha_bar <= top.alpha_bar:
        raise UserError(f"extension: it restarts at time {start:g}, so s must be below {start:g}")
    return _from(top, levels)
