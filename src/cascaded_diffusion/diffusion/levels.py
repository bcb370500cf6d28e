r"""Noise levels as :math:`\sigma`, the noise to signal ratio that EDM (2206.00364) counts in.

EDM noises by :math:`y = x_0 + \sigma n` (variance exploding); this library keeps :math:`z = \alpha x_0 + s\,\epsilon`
with :math:`\alpha^2 = \bar\alpha`, :math:`s^2 = 1 - \bar\alpha` (variance preserving). They are one process on two
scales: :math:`z = \alpha y` where

.. math:: \sigma = s / \alpha, \qquad \bar\alpha = 1 / (1 + \sigma^2), \qquad \log\mathrm{SNR} = -2 \ln \sigma.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.diffusion.schedule import Level, Schedule
from cascaded_diffusion.errors import UserError

__all__ = ["LogNormalLevels", "alpha_bar_of", "log_sigma", "rho_sigmas", "sigma_levels", "sigma_of"]

_SMALLEST = 2.0**-33
"""Half of the finest step of the uniforms: keeps their normal quantiles finite."""


def sigma_of(alpha_bar: float) -> float:
    """sigma of a level; 0 for the clean image."""
    return math.sqrt((1 - alpha_bar) / alpha_bar)


def alpha_bar_of(sigma: float) -> float:
    """The level that has this sigma."""
    return 1 / (1 + sigma * sigma)


def log_sigma(alpha_bar: Tensor) -> Tensor:
    """ln(sigma) of levels of any shape, in alpha_bar's own precision; within [-50, 50] even where sigma is 0."""
    return (0.5 * (torch.log1p(-alpha_bar) - torch.log(alpha_bar))).clamp(-50, 50)


class LogNormalLevels(StrictModel):
    """The noise levels that training draws: ln(sigma) ~ N(P_mean, P_std^2), EDM (2206.00364), table 1 and section 5."""

    p_mean: float = Field(default=-1.2, ge=-10, le=10, description="P_mean, the mean of ln(sigma); -1.2 in EDM.")
    p_std: float = Field(default=1.2, gt=0, le=10, description="P_std, its standard deviation; 1.2 in EDM.")

    def times(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Training times from uniforms ``u`` in [0, 1): float64 (N,).

        The level drawn is looked up in the schedule, so that times mean what they mean everywhere else. Levels beyond
        the schedule's range become its first or last; a discrete schedule has the nearest step.
        """
        quantile = torch.special.ndtri(u.to(torch.float64).clamp(_SMALLEST, 1 - _SMALLEST))
        return schedule.time_of(torch.sigmoid(-2 * (self.p_mean + self.p_std * quantile)))


def rho_sigmas(count: int, low: float, high: float, rho: float | None) -> list[float]:
    """``count`` sigmas from ``high`` down to ``low``, even in sigma^(1/rho): EDM (2206.00364), eq. 5.

    With rho = None they are even in ln(sigma), and so in log SNR: the limit of a large rho.
    """
    share = np.linspace(0, 1, count)
    if rho is None:
        values = np.exp((1 - share) * math.log(high) + share * math.log(low))
    else:
        values = ((1 - share) * high ** (1 / rho) + share * low ** (1 / rho)) ** rho
    return [float(value) for value in values]


_NEXT_TO_CLEAN = 1e-12
"""A time at which a schedule is where it begins; at 0 itself the image is clean."""


def sigma_levels(schedule: Schedule, count: int, span: tuple[float, float], rho: float | None) -> list[Level]:
    """Levels of a stage in continuous time at :func:`rho_sigmas`; the step from the last one leads to the clean image.

    Raises:
        UserError: a sigma that the schedule does not reach.
    """
    low, high = span
    noisiest = sigma_of(schedule.level(1.0).alpha_bar)
    if high > noisiest * (1 + 1e-9):
        raise UserError(f"sigma_range: {high:g} is above {noisiest:g}, where the stage's noise schedule ends")
    cleanest = sigma_of(schedule.level(_NEXT_TO_CLEAN).alpha_bar)
    if low < cleanest * (1 - 1e-6):  # float64 keeps so much of 1 - alpha_bar
        raise UserError(f"sigma_range: {low:g} is below {cleanest:g}, where the stage's noise schedule begins")
    levels = []
    for sigma in rho_sigmas(count, low, high, rho):
        alpha_bar = alpha_bar_of(sigma)
        levels.append(Level(alpha_bar, float(schedule.time_of(torch.tensor(alpha_bar, dtype=torch.float64)))))
    return levels
