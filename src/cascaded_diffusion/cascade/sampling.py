"""How a stage is sampled by default: the settings that a search may change after training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from cascaded_diffusion.conditioning.augmentation import AugmentationMode
from cascaded_diffusion.config import StrictModel, shorten
from cascaded_diffusion.diffusion.grid import SigmaGrid
from cascaded_diffusion.diffusion.samplers import SamplerName

__all__ = [
    "LARGEST_SIGMA",
    "Endpoints",
    "GridName",
    "Guidance",
    "Interval",
    "SamplingConfig",
    "Start",
    "StepCount",
    "Strength",
]

GridName = Literal["time", "edm", "log-snr"]


_MOST_STEPS = 1_000_000


def _check_steps(steps: object) -> int | str:
    text = str(steps) if isinstance(steps, str) or type(steps) is int else ""
    words = [text[4:]] if text.startswith("ddim") else text.split(",")
    known = all(word.strip().isascii() and word.strip().isdigit() and len(word) <= 20 for word in words)
    if not known or len(text) > 200 or not all(1 <= int(word) <= _MOST_STEPS for word in words):
        raise ValueError(
            f"steps: {shorten(steps)} is not allowed; give a number from 1 to {_MOST_STEPS:,}, sections such as "
            "10,20,30, or ddimN"
        )
    return int(text) if text.isdigit() else text


StepCount = Annotated[
    Annotated[int, Field(ge=1, le=_MOST_STEPS)] | Annotated[str, Field(max_length=200)], BeforeValidator(_check_steps)
]
Strength = Annotated[float, Field(ge=0, le=1)]
Guidance = Annotated[float, Field(ge=0, le=100)]
_Beta = Annotated[float, Field(gt=0, lt=1)]
Endpoints = tuple[_Beta, _Beta]
LARGEST_SIGMA = 1e5
_Sigma = Annotated[float, Field(ge=0, le=LARGEST_SIGMA)]
Interval = tuple[_Sigma, _Sigma]
Start = Annotated[float, Field(gt=0, le=1)]


class SamplingConfig(StrictModel):
    """A stage's default sampling settings."""

    sampler: SamplerName = Field(default="ancestral", description=f"{', '.join(get_args(SamplerName))}.")
    steps: StepCount = Field(
        default=100, description="Steps over the whole range; sections 10,20,30 or ddimN for discrete stages."
    )
    endpoints: Endpoints | None = Field(
        default=None, description="Continuous stages: first and last beta of a linear sampling schedule (SR3), or null."
    )
    grid: GridName = Field(
        default="time",
        description="Continuous stages: levels even in time, in sigma^(1/rho) (EDM, 2206.00364, eq. 5), or in log SNR.",
    )
    sigma_range: tuple[_Sigma, _Sigma] = Field(
        default=(0.002, 80.0),
        description="grid: edm, log-snr: sigma of the last and the first level, sigma^2 = 1/SNR; EDM's by default.",
    )
    rho: float = Field(default=7.0, ge=1, le=100, description="grid: edm: rho, 7 in the paper.")
    start: Start | None = Field(
        default=None,
        description="SR stages: begin at this time with the enlarged low-resolution image, noised to its level, in "
        "place of pure noise (relay start, after 2309.03350); steps still count the whole range. Null: noise.",
    )
    guidance: Guidance = Field(default=1.0, description="Classifier-free guidance (2207.12598); 1 is none.")
    guide: Guidance = Field(
        default=1.0,
        description="Autoguidance (2406.02507): weight with which the stage is led away from its guide, a worse copy "
        "that the cascade holds; 1 is none.",
    )
    guidance_interval: Interval | None = Field(
        default=None,
        description="Guide only where low < sigma <= high, sigma^2 = 1/SNR (2404.07724); null: everywhere.",
    )
    augmentation: AugmentationMode = Field(
        default="none", description="SR stages with gaussian augmentation: truncated, nontruncated or none."
    )
    s: Strength = Field(default=0.0, description="Strength of the conditioning augmentation at sampling.")
    clip: bool = Field(default=True, description="Clip the predicted image to [-1, 1] at every step.")
    dynamic_threshold: float | None = Field(
        default=None, gt=0, le=1, description="Clip to this percentile of each image instead (Imagen), e.g. 0.995."
    )
    extension: bool = Field(
        default=False,
        description="Re-noise the finished image to half time and run again (CDM's sampling-step extension).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.augmentation == "none" and self.s != 0:
            raise ValueError(f"s: {self.s:g} does not go with augmentation: none; allowed 0")
        if self.endpoints is not None and self.endpoints[0] > self.endpoints[1]:
            raise ValueError(f"endpoints: {list(self.endpoints)} is not a pair 0 < first <= last < 1")
        self._check_grid()
        if self.start is not None and self.augmentation == "truncated":
            raise ValueError(
                f"start: {self.start:g} needs the whole low-resolution image, which augmentation: truncated does not "
                "give; allowed: nontruncated, none"
            )
        interval = self.guidance_interval
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError(f"guidance_interval: {list(interval)} is not a range; allowed: lowest first")
        return self

    def _check_grid(self) -> None:
        low, high = self.sigma_range
        if not 0 < low < high:
            raise ValueError(f"sigma_range: [{low:g}, {high:g}] is not a pair 0 < last < first")
        fields = SamplingConfig.model_fields
        if self.grid == "time" and self.sigma_range != fields["sigma_range"].default:
            raise ValueError(f"sigma_range: [{low:g}, {high:g}] needs grid: edm or log-snr")
        if self.grid != "edm" and self.rho != fields["rho"].default:
            raise ValueError(f"rho: {self.rho:g} needs grid: edm")
        if self.grid != "time" and self.endpoints is not None:
            raise ValueError(f"endpoints: {list(self.endpoints)} does not go with grid: {self.grid}; choose one")

    @property
    def sigmas(self) -> SigmaGrid | None:
        """Where the grid lies, if it is not even in time."""
        return None if self.grid == "time" else SigmaGrid(*self.sigma_range, self.rho if self.grid == "edm" else None)

    def guided_at(self, sigma: float) -> bool:
        """Whether guidance of either kind acts at a level."""
        if self.guidance == 1 and self.guide == 1:
            return False
        if self.guidance_interval is None:
            return True
        # A grid's sigma of 10 comes back from alpha_bar as 10.000000000000002.
        low, high = (end * (1 + 1e-9) for end in self.guidance_interval)
        return low < sigma <= high

    def identity(self) -> dict[str, Any]:
        """All settings as JSON, without those that are off, so that what was kept before one existed is still found."""
        optional = ("grid", "sigma_range", "rho", "start", "guide", "guidance_interval")
        fields = SamplingConfig.model_fields
        unused = {name for name in optional if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=unused)

    def words(self) -> list[str]:
        """What there is to say of guidance, grid and start, such as ``guidance 1.5`` and ``from time 0.6``."""
        told = [] if self.guidance == 1 else [f"guidance {self.guidance:g}"]
        told += [] if self.guide == 1 else [f"guide {self.guide:g}"]
        if told and self.guidance_interval is not None:
            told.append("at sigma {:g} to {:g}".format(*self.guidance_interval))
        if self.grid != "time":
            rho = f" rho {self.rho:g}" if self.grid == "edm" else ""
            told.append(f"{self.grid} grid{rho}")
        return told + ([] if self.start is None else [f"from time {self.start:g}"])
