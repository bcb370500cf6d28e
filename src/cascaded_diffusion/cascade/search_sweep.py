"""What a search is asked to try: the swept settings, the stages they mean something to, and their combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal

from pydantic import Field

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import (
    Endpoints,
    GridName,
    Guidance,
    Interval,
    SamplingConfig,
    Start,
    StepCount,
    Strength,
)
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.errors import UserError, did_you_mean

__all__ = ["DEFAULT_S", "MODES", "SETTINGS", "Sweep", "pick_stages", "settings_to_try"]

SETTINGS = ("augmentation", "s", "steps", "guidance", "endpoints", "start", "guide", "guidance_interval", "grid")
"""What can be swept, in the order in which it is told."""

DEFAULT_S = tuple(round(0.05 * i, 2) for i in range(11))
MODES: tuple[Literal["nontruncated", "truncated"], ...] = ("nontruncated", "truncated")


class Sweep(StrictModel):
    """Which settings are swept, and over which values; ``None`` leaves a setting as it is.

    ``s`` and ``augmentation`` are one sweep: either without the other takes the other's default, and nothing at all
    means both.
    """

    s: tuple[Strength, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Strengths; default 0, 0.05, ... 0.5, as far as the stage knows them.",
    )
    augmentation: tuple[Literal["truncated", "nontruncated"], ...] | None = Field(
        default=None, min_length=1, max_length=10, description="Modes; default all that the stage has."
    )
    steps: tuple[StepCount, ...] | None = Field(
        default=None, min_length=1, max_length=1000, description="Sampling steps."
    )
    guidance: tuple[Guidance, ...] | None = Field(
        default=None, min_length=1, max_length=1000, description="Guidance scales."
    )
    endpoints: tuple[Endpoints, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="First and last beta of a linear sampling schedule (SR3).",
    )
    start: tuple[Start, ...] | None = Field(
        default=None, min_length=1, max_length=1000, description="Times to start from (relay start); 1 is noise."
    )
    guide: tuple[Guidance, ...] | None = Field(
        default=None, min_length=1, max_length=1000, description="Weights of the guide (autoguidance); 1 is none."
    )
    guidance_interval: tuple[Interval | None, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Sigmas between which either guidance acts; null is everywhere.",
    )
    grid: tuple[GridName, ...] | None = Field(
        default=None, min_length=1, max_length=10, description="What the levels are even in, for continuous stages."
    )

    @property
    def asked(self) -> tuple[str, ...]:
        """The settings that were named."""
        return tuple(name for name in SETTINGS if getattr(self, name) is not None)


def pick_stages(cascade: Cascade, text: str, sweep: Sweep) -> dict[str, list[dict[str, Any]]]:
    """The stages to search in the cascade's order, and what to try of each.

    Args:
        cascade: the chain.
        text: ``NAME``, ``NAME,NAME`` or ``all``. ``all`` leaves out the stages that the swept settings mean nothing to.
        sweep: what is swept.

    Raises:
        UserError: a stage that is not there or named twice, or that has nothing to sweep; a setting that means nothing
            to any of the stages, or a mode that one does not have.
    """
    names = list(cascade.stages)
    words = names if text == "all" else [word.strip() for word in text.split(",")]
    for word in words:
        if word not in names:
            hint = did_you_mean(word, names)
            raise UserError(f"stage: no stage {word!r} in this cascade; allowed: {', '.join(names)} or all{hint}")
        if words.count(word) > 1:
            raise UserError(f"stage: {text!r} names {word} twice")
    wanted = [stage for name, stage in cascade.stages.items() if name in words]
    for setting in sweep.asked:
        reasons = [_why_not(stage, setting, sweep, cascade.defaults[stage.name]) for stage in wanted]
        if all(reasons):
            raise UserError(f"{setting}: cannot be swept: {'; '.join(filter(None, reasons))}")
    found = {
        stage.name: settings_to_try(stage, sweep, cascade.defaults[stage.name], truncated=cascade.truncated[stage.name])
        for stage in wanted
    }
    for name, choices in found.items():
        if not choices and text != "all":
            raise UserError(f"stage: nothing to sweep for {name}; give it steps or guidance, or another stage")
    if not any(found.values()):
        raise UserError(f"stage: {text} has no s to sweep; give steps or guidance")
    return {name: choices for name, choices in found.items() if choices}


def settings_to_try(stage: Stage, sweep: Sweep, default: SamplingConfig, *, truncated: bool) -> list[dict[str, Any]]:
    """Every combination of the swept settings that mean something to the stage; empty if none does.

    Left out are a relay start of a truncated stage, which has no image to start from, and all intervals but everywhere
    where there is no guidance to keep to them.

    Args:
        stage: the searched one.
        sweep: what is swept.
        default: the stage's settings, for what is not swept.
        truncated: whether the stage below can be stopped at s for it.

    Raises:
        UserError: truncated was asked for by name, and is not available; or a start or a mode that goes with none of
            the others.
    """
    parts: list[list[dict[str, Any]]] = []
    wants_s = not sweep.asked or bool({"s", "augmentation"} & set(sweep.asked))
    if wants_s and _why_not(stage, "s", sweep, default) is None:
        parts.append(_strengths(stage, sweep, default, truncated=truncated))
    for setting in SETTINGS[2:]:
        values = getattr(sweep, setting)
        if values is not None and _why_not(stage, setting, sweep, default) is None:
            if setting == "start":  # at time 1 it is noise, which a stage's settings call null
                values = [None if value == 1 else value for value in values]
            parts.append([{setting: value} for value in dict.fromkeys(values)])
    if not parts:
        return []
    combined = [{key: value for part in chosen for key, value in part.items()} for chosen in product(*parts)]
    return _sensible(stage, sweep, default, combined)


def _sensible(
    stage: Stage, sweep: Sweep, default: SamplingConfig, combined: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The combinations without those that contradict themselves, and each once."""
    kept = [choice for choice in combined if not (choice.get("start") and choice.get("augmentation") == "truncated")]
    starts = {choice.get("start") for choice in kept}
    lost = [choice["start"] for choice in combined if choice.get("start") and choice["start"] not in starts]
    if lost:
        raise UserError(
            f"start: {lost[0]:g} for {stage.name} needs the whole low-resolution image, which augmentation: truncated "
            "does not give; allowed: 1 alone, or nontruncated among --augmentation"
        )
    modes = {choice.get("augmentation") for choice in kept}
    wanted = {choice.get("augmentation") for choice in combined} & set(sweep.augmentation or ())
    if not wanted <= modes:
        raise UserError(
            f"augmentation: truncated for {stage.name} does not go with a start below 1; allowed: nontruncated, or 1 "
            "among --start"
        )
    free = {"guidance_interval": None}
    sensible = [
        choice | free if choice.get("guidance_interval") and not _is_guided(choice, default) else choice
        for choice in kept
    ]
    return [dict(items) for items in dict.fromkeys(tuple(choice.items()) for choice in sensible)]


def _is_guided(choice: Mapping[str, Any], default: SamplingConfig) -> bool:
    """Whether guidance of either kind acts at some level."""
    return bool(choice.get("guidance", default.guidance) != 1 or choice.get("guide", default.guide) != 1)


def _strengths(stage: Stage, sweep: Sweep, default: SamplingConfig, *, truncated: bool) -> list[dict[str, Any]]:
    conditioning = stage.config.conditioning
    assert conditioning is not None  # _why_not has seen to it
    # A stage that starts from the image by default, and goes on to, is not truncated unless somebody says so.
    starts = default.start is not None and sweep.start is None
    modes: Sequence[str] = MODES if truncated and not starts else ("nontruncated",)
    if sweep.augmentation is not None:
        modes = [mode for mode in MODES if mode in sweep.augmentation]
        if "truncated" in modes and not truncated:
            raise UserError(
                f"augmentation: truncated is not available, {stage.name} was assembled with --no-truncated; "
                "allowed: nontruncated"
            )
    values = list(sweep.s or [s for s in DEFAULT_S if s <= conditioning.s_max])
    if not sweep.s and conditioning.s_max < DEFAULT_S[1]:
        values.append(conditioning.s_max)
    # At s = 0 nothing is noised and nothing stopped: one point for both modes. It is listed first, for it wins ties.
    clean = [{"augmentation": "none", "s": 0.0}] if 0 in values else []
    return clean + [{"augmentation": mode, "s": s} for mode in modes for s in sorted(set(values)) if s != 0]


def _why_not(stage: Stage, setting: str, sweep: Sweep, default: SamplingConfig) -> str | None:
    """Why a setting means nothing to a stage, or ``None``."""
    config = stage.config
    if setting in ("s", "augmentation"):
        return config.why_no_s()
    if setting == "guidance":
        return config.why_no_guidance()
    if setting == "start" and config.conditioning is None:
        return f"{stage.name} is a base stage and has no image to start from"
    if setting == "guide" and stage.guide is None:
        return f"{stage.name} has no guide; cdm assemble --guide gives it one"
    if setting == "guidance_interval":
        return _why_no_interval(stage, sweep, default)
    if setting in ("endpoints", "grid") and not config.diffusion.noise_schedule.is_continuous:
        schedule = config.diffusion.noise_schedule.describe()
        return f"{stage.name} was trained with {schedule} and takes no sampling {_OWN[setting]} of its own"
    return None


_OWN = {"endpoints": "schedule", "grid": "grid"}


def _why_no_interval(stage: Stage, sweep: Sweep, default: SamplingConfig) -> str | None:
    """As :func:`_why_not`: a stage without guidance, or whose guidance is not used at any point."""
    why_no_guidance = stage.config.why_no_guidance()
    if stage.guide is None and why_no_guidance is not None:
        return f"{why_no_guidance}, and it has no guide"
    guidance = (sweep.guidance if why_no_guidance is None else None) or (default.guidance,)
    guide = (sweep.guide if stage.guide is not None else None) or (default.guide,)
    if set(guidance) | set(guide) == {1.0}:
        return f"{stage.name} is not guided by default; give values of --guidance or --guide too"
    return None
