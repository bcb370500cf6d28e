r"""Noise schedules: how much of the image is left at each moment of diffusion.

Time ``u`` runs from 0 (the clean image) to 1 (noise). :math:`\bar\alpha(u)` is the share of the image's variance that
is left: :math:`x_u = \sqrt{\bar\alpha}\,x_0 + \sqrt{1-\bar\alpha}\,\epsilon`, and :math:`\bar\alpha(0) = 1` exactly.

A discrete schedule of T steps lives on the grid u = k/T, with :math:`\bar\alpha(k/T) = \prod_{i \le k} (1-\beta_i)`; a
continuous one is defined for every u.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from cascaded_diffusion.config import StrictModel

__all__ = [
    "Level",
    "Schedule",
    "ScheduleConfig",
    "cosine_alpha_bar",
    "cosine_time",
    "linear_alpha_bar",
    "linear_time",
    "shift_log_snr",
]

_MAX_LOG_SNR = 20.0
"""Continuous schedules stay within [-20, 20], before ``log_snr_shift``, as in Salimans & Ho (2202.00512), so that no
division by zero occurs."""

_LEAST_TIME = 1e-9
"""Of a noise level that training may meet."""

_LEAST_ALPHA_BAR = 1e-30
"""Discrete schedules end above this: float32 holds the square root's inverse, squared."""


class Level(NamedTuple):
    """One level of noise: what is left of the image, and the time at which its schedule says so."""

    alpha_bar: float
    time: float


class ScheduleConfig(StrictModel):
    """A noise schedule."""

    kind: Literal["cosine", "linear"] = Field(
        default="cosine", description="cosine (iDDPM, 2102.09672, eq. 17) or linear in beta (DDPM, 2006.11239)."
    )
    timesteps: int | None = Field(
        default=1000, ge=1, le=1_000_000, description="T, the number of steps; null for a schedule in continuous time."
    )
    continuous: bool = Field(
        default=False,
        description="With T steps: train on noise levels between the steps too, sqrt(alpha_bar) uniform between "
        "neighbours (WaveGrad, 2009.00713; SR3, 2104.07636), so that the sampling steps can be chosen after training.",
    )
    beta_start: float | None = Field(
        default=None,
        ge=1e-9,
        lt=1,
        description="Linear: beta of the first step (of 1000 in continuous time). Default 0.1/T.",
    )
    beta_end: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Linear: beta of the last step (of 1000 in continuous time). Default 20/T.",
    )
    log_snr_shift: float = Field(
        default=0.0,
        ge=-10,
        le=10,
        description="Added to log SNR; 2 log(64/R) keeps the noise at resolution R what it is at 64 "
        "(simple diffusion, 2301.11093).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "linear" and (self.beta_start is not None or self.beta_end is not None):
            raise ValueError(
                f"kind: {self.kind} has no beta_start or beta_end, they belong to kind: linear; remove them"
            )
        start, end = self.betas
        if self.kind == "linear":
            if not start <= end < 1:
                raise ValueError(f"beta_start: {start:g} to beta_end {end:g}; beta_start <= beta_end < 1 does not hold")
            self._check_linear_end(start, end)
        return self

    def _check_linear_end(self, start: float, end: float) -> None:
        if self.timesteps is None:
            log_last, allowed = -500 * (start + end), -_MAX_LOG_SNR
        else:
            log_last = float(np.log1p(-np.linspace(start, end, self.timesteps)).sum())
            allowed = math.log(_LEAST_ALPHA_BAR)
        if log_last < allowed:
            raise ValueError(
                f"beta_end: {end:g} after beta_start {start:g} leaves alpha_bar = exp({log_last:.0f}) at the end; "
                f"allowed from exp({allowed:.0f})"
            )

    @property
    def betas(self) -> tuple[float, float]:
        """First and last beta of a linear schedule, with DDPM's values for 1000 steps scaled to T where not given."""
        scale = 1000 / (self.timesteps or 1000)
        return (
            1e-4 * scale if self.beta_start is None else self.beta_start,
            0.02 * scale if self.beta_end is None else self.beta_end,
        )

    @property
    def is_continuous(self) -> bool:
        """Whether every u in [0, 1] is a level of its own."""
        return self.continuous or self.timesteps is None

    @property
    def meaning(self) -> tuple[object, ...]:
        """Equal for schedules that are equal, however they are written: with the defaults spelled out or left out."""
        betas = self.betas if self.kind == "linear" else None
        return self.kind, self.timesteps, self.is_continuous, betas, self.log_snr_shift

    def describe(self) -> str:
        """A few words for messages, such as ``cosine T=4000``."""
        words = [self.kind, "continuous" if self.timesteps is None else f"T={self.timesteps}"]
        if self.kind == "linear":
            words.append("beta {:g}..{:g}".format(*self.betas))
        if self.continuous and self.timesteps is not None:
            words.append("between steps too")
        if self.log_snr_shift:
            words.append(f"log-SNR shift {self.log_snr_shift:g}")
        return " ".join(words)


def cosine_alpha_bar(u: np.ndarray) -> np.ndarray:
    """The cosine schedule in closed form, f(u)/f(0) with f(u) = cos^2((u + 0.008)/1.008 pi/2): iDDPM eq. 17."""

    def f(v: np.ndarray | float) -> np.ndarray:
        return np.asarray(np.cos((v + 0.008) / 1.008 * math.pi / 2) ** 2)

    return np.asarray(f(u) / f(0.0))


def cosine_time(alpha_bar: np.ndarray) -> np.ndarray:
    """The inverse of :func:`cosine_alpha_bar`."""
    at_zero = math.cos(0.008 / 1.008 * math.pi / 2)
    return np.asarray(np.arccos(np.sqrt(alpha_bar) * at_zero) * (2 / math.pi) * 1.008 - 0.008)


def linear_alpha_bar(u: np.ndarray, beta_start: float, beta_end: float) -> np.ndarray:
    """The continuous limit of a linear schedule of 1000 steps (VP-SDE, 2011.13456, eq. 33)."""
    return np.asarray(np.exp(-1000 * (beta_start * u + 0.5 * (beta_end - beta_start) * u**2)))


def linear_time(alpha_bar: np.ndarray, beta_start: float, beta_end: float) -> np.ndarray:
    """The inverse of :func:`linear_alpha_bar`: the root of a square equation, in the form that does not cancel."""
    decay = -np.log(alpha_bar) / 1000
    return np.asarray(2 * decay / (beta_start + np.sqrt(beta_start**2 + 2 * (beta_end - beta_start) * decay)))


def shift_log_snr(alpha_bar: np.ndarray, shift: float) -> np.ndarray:
    """Multiply the signal-to-noise ratio by exp(shift): simple diffusion (2301.11093), section 3.1."""
    if shift == 0:
        return alpha_bar
    scaled = alpha_bar * math.exp(shift)
    return np.asarray(scaled / (scaled + 1 - alpha_bar))


def _discrete_alpha_bar(config: ScheduleConfig, timesteps: int) -> np.ndarray:
    if config.kind == "cosine":
        ratio = cosine_alpha_bar(np.arange(timesteps + 1) / timesteps)
        betas = np.minimum(1 - ratio[1:] / ratio[:-1], 0.999)
    else:
        betas = np.linspace(*config.betas, timesteps, dtype=np.float64)
    return shift_log_snr(np.cumprod(1 - betas), config.log_snr_shift)


class Schedule:
    """A schedule ready for use, in float64 on the CPU: float32 would lose what is left of noise near the image.

    Attributes:
        config: what it was built from.
        alphas_cumprod: float64 (T,), entry k-1 belongs to step k; ``None`` in continuous time.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.alphas_cumprod: np.ndarray | None = None
        if config.timesteps is not None:
            self.alphas_cumprod = _discrete_alpha_bar(config, config.timesteps)

    @property
    def timesteps(self) -> int | None:
        """T of a schedule that has only T levels, ``None`` of one that is continuous."""
        return None if self.config.is_continuous else self.config.timesteps

    def snap(self, u: Tensor) -> Tensor:
        """The nearest time that the schedule has: k/T with k = round(u T), or u itself if it is continuous."""
        steps = self.timesteps
        u = u.to(torch.float64)
        # Half rounds up, not to even: k must grow with u.
        return u if steps is None else torch.floor(u * steps + 0.5) / steps

    def alpha_bar(self, u: Tensor) -> Tensor:
        """alpha_bar at times ``u`` in [0, 1], of any shape: float64; exactly 1 where u is 0 (or rounds to step 0)."""
        u64 = self.snap(u)
        if not bool(((u64 >= 0) & (u64 <= 1)).all()):
            raise ValueError(f"time must be in [0, 1], got {u.min().item():g} to {u.max().item():g}")
        values = self._evaluate(u64.cpu().numpy())
        return torch.from_numpy(np.where(u64.cpu().numpy() == 0, 1.0, values)).to(u.device)

    def _evaluate(self, u: np.ndarray) -> np.ndarray:
        table = self.alphas_cumprod
        if table is None:
            raw = cosine_alpha_bar(u) if self.config.kind == "cosine" else linear_alpha_bar(u, *self.config.betas)
            low = 1 / (1 + math.exp(_MAX_LOG_SNR))
            return shift_log_snr(np.clip(raw, low, 1 - low), self.config.log_snr_shift)
        whole = np.concatenate([[1.0], table])
        if not self.config.is_continuous:
            return np.asarray(whole[np.rint(u * len(table)).astype(np.int64)])
        # Between steps sqrt(alpha_bar) is linear (WaveGrad, 2009.00713, section 4); on the grid it is the table's.
        return np.asarray(np.interp(u, np.arange(len(whole)) / len(table), np.sqrt(whole)) ** 2)

    def level(self, u: float) -> Level:
        """The level at time ``u``, snapped to the grid of a discrete schedule."""
        snapped = self.snap(torch.tensor(u, dtype=torch.float64))
        return Level(float(self.alpha_bar(snapped)), float(snapped))

    def time_of(self, alpha_bar: Tensor) -> Tensor:
        """The time at which the schedule has ``alpha_bar``, of any shape: float64 in (0, 1].

        What lies beyond the schedule's range gets its first or last noise level; a discrete schedule gives the step
        from 1 to T that is nearest in sqrt(alpha_bar).
        """
        values = alpha_bar.to("cpu", torch.float64).numpy()
        table = self.alphas_cumprod
        if table is None:
            low = 1 / (1 + math.exp(_MAX_LOG_SNR))
            raw = np.clip(shift_log_snr(values, -self.config.log_snr_shift), low, 1 - low)
            times = cosine_time(raw) if self.config.kind == "cosine" else linear_time(raw, *self.config.betas)
        else:
            roots = np.sqrt(np.concatenate([[1.0], table]))
            times = np.interp(-np.sqrt(values), -roots, np.arange(len(roots)) / len(table))
            if not self.config.is_continuous:
                times = np.rint(times * len(table)).clip(min=1) / len(table)
        # A level of no noise at all is never trained on.
        return torch.from_numpy(np.asarray(np.clip(times, _LEAST_TIME, 1.0))).to(alpha_bar.device)

    def log_snr_slope(self, u: Tensor) -> Tensor:
        """|d log SNR / du| at times ``u`` of a schedule in continuous time, by a central difference: float64."""
        step = 1e-5
        low, high = (u.to(torch.float64) - step).clamp(min=0.5 * step), (u.to(torch.float64) + step).clamp(max=1)
        log_snr = [torch.log(ab) - torch.log1p(-ab) for ab in (self.alpha_bar(low), self.alpha_bar(high))]
        # Where the schedule is cut off, the level stands still and weighs next to nothing.
        return ((log_snr[0] - log_snr[1]) / (high - low)).clamp(min=1e-6)
