"""How a stage is sampled by default: the settings that a search may change after training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cascaded_diffusion.conditioning.augmentation import AugmentationMode
from cascaded_diffusion.config import StrictModel, shorten

__all__ = ["Endpoints", "Guidance", "SamplerName", "SamplingConfig", "StepCount", "Strength"]

SamplerName = Literal["ancestral", "ddim", "heun", "dpmpp-2m"]


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


class SamplingConfig(StrictModel):
    """A stage's default sampling settings."""

    sampler: SamplerName = Field(default="ancestral", description="ancestral, ddim, heun or dpmpp-2m.")
    steps: StepCount = Field(
        default=100, description="Steps over the whole range; sections 10,20,30 or ddimN for discrete stages."
    )
    endpoints: Endpoints | None = Field(
        default=None, description="Continuous stages: first and last beta of a linear sampling schedule (SR3), or null."
    )
    guidance: Guidance = Field(default=1.0, description="Classifier-free guidance (2207.12598); 1 is none.")
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
        return self
