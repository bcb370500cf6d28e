"""A stage's denoiser with guidance: away from its output without class, from a worse copy of itself, or from both."""

from __future__ import annotations

from torch import Tensor

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.diffusion.denoiser import clipped_denoiser
from cascaded_diffusion.diffusion.levels import sigma_of
from cascaded_diffusion.diffusion.samplers import Denoiser, Prediction
from cascaded_diffusion.diffusion.schedule import Level

__all__ = ["stage_denoiser"]


def stage_denoiser(
    stage: Stage, settings: SamplingConfig, *, labels: Tensor | None, low_res: Tensor | None, s: Tensor | None
) -> Denoiser:
    """What a sampler calls: the stage's network with conditions, guidance and clipping filled in.

    Autoguidance (2406.02507, eq. 3): D = D_guide + w (D_stage - D_guide) with w = ``settings.guide``, on predicted
    images, so that the guide's network may predict something else. With ``settings.guidance`` too, D_stage is the
    class-guided prediction, and w widens its distance to the guide. A learned variance is the stage's own.

    At levels outside ``settings.guidance_interval`` (2404.07724) the stage's network is called once, with the class.

    Args:
        stage: with its guide, if ``settings.guide`` is not 1.
        settings: guidance, guide, guidance_interval, clip, dynamic_threshold.
        labels: (N,) or ``None``.
        low_res: what the network sees of the low-resolution image.
        s: (N,) its noise level, if the network is told.
    """
    plain = stage.network_call(labels=labels, low_res=low_res, s=s)
    guided = stage.network_call(labels=labels, low_res=low_res, s=s, guidance=settings.guidance)
    guide = stage.guide
    if settings.guide != 1 and guide is None:
        raise ValueError(f"{stage.name} has no guide")
    worse = None if guide is None or settings.guide == 1 else guide.network_call(labels=labels, low_res=low_res, s=s)

    def acts(level: Level) -> bool:
        return settings.guided_at(sigma_of(level.alpha_bar))

    def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        x0, variance = stage.diffusion.predict(guided if acts(level) else plain, x, level)
        if acts(level) and guide is not None and worse is not None:
            other, _ = guide.diffusion.predict(worse, x, level)
            x0 = other + settings.guide * (x0 - other)
        return x0, variance

    clipped = clipped_denoiser(predict, clip=settings.clip, percentile=settings.dynamic_threshold)

    def denoise(x: Tensor, level: Level) -> Prediction:
        return clipped(x, level)._replace(guided=acts(level))

    return denoise
