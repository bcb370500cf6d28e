"""How a stage is sampled by default: the settings that a search may change after training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cascaded_diffusion.conditioning.augmentation import AugmentationMode
from cascaded_diffusion.config import StrictModel

__all__ = ["SamplerName", "SamplingConfig", "StepCount"]

SamplerName = Literal["ancestral", "ddim", "heun", "dpmpp-2m"]


def _check_steps(steps: int | str) -> int | str:
    text = str(steps)
    words = [text[4:]] if text.startswith("ddim") else text.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() and int(word) >= 1 for word in words):
        raise ValueError(f"steps: {steps!r} is not allowed; give a number from 1, sections such as 10,20,30, or ddimN")
    return int(text) if text.isdigit() else text


StepCount = Annotated[int | str, AfterValidator(_check_steps)]


class SamplingConfig(StrictModel):
    """A stage's default sampling settings."""

    sampler: SamplerName = Field(default="ancestral", description="ancestral, ddim, heun or dpmpp-2m.")
    steps: StepCount = Field(
        default=100, description="Steps over the whole range; sections 10,20,30 or ddimN for discrete stages."
    )
    endpoints: tuple[float, float] | None = Field(
        default=None, description="Continuous stages: first and last beta of a linear sampling schedule (SR3), or null."
    )
    guidance: float = Field(default=1.0, ge=0, le=100, description="Classifier-free guidance (2207.12598); 1 is none.")
    augmentation: AugmentationMode = Field(
        default="none", description="SR stages with gaussian augmentation: truncated, nontruncated or none."
    )
    s: float = Field(default=0.0, ge=0, le=1, description="Strength of the conditioning augmentation at sampling.")
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
        if self.endpoints is not None and not 0 < self.endpoints[0] <= self.endpoints[1] < 1:
            raise ValueError(f"endpoints: {list(self.endpoints)} is not a pair 0 < first <= last < 1")
        return self
