"""What a person asks of the stages, checked against what each stage can do, before any work."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, get_args

from pydantic import ValidationError

from cascaded_diffusion.cascade.generate import stage_grids
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.conditioning.augmentation import SAMPLING_MODES
from cascaded_diffusion.config import explain
from cascaded_diffusion.diffusion.samplers import SamplerName
from cascaded_diffusion.diffusion.schedule import Level
from cascaded_diffusion.errors import UserError

__all__ = ["Choice", "Requests", "resolve_settings", "stop_for"]

_LOG = logging.getLogger(__name__)
_STILL_NOISE = 0.01
"""Largest alpha_bar that passes for pure noise: a tenth of the image's size is in it."""

Choice = Any
"""One value for all stages, or a mapping from stage name to value."""


@dataclass(frozen=True)
class Requests:
    """The settings a person gave; ``None`` means the stage's default."""

    steps: Choice = None
    sampler: Choice = None
    augmentation: Choice = None
    s: Choice = None
    guidance: Choice = None
    more: Mapping[str, Mapping[str, Any]] | None = None
    """Stage name to other keys of its sampling settings."""


def _spread(
    what: str,
    choice: Choice,
    stages: Sequence[Stage],
    why_not: Callable[[StageConfig], str | None],
    neutral: Any,
) -> dict[str, Any]:
    """A choice as stage name -> value. One value for all goes to the stages it can mean something to."""
    reasons = {stage.name: why_not(stage.config) for stage in stages}
    if choice is None:
        return {}
    if not isinstance(choice, Mapping):
        able = [name for name, reason in reasons.items() if reason is None]
        if not able and choice != neutral:
            raise UserError(f"{what}: {choice} has no effect here: {'; '.join(filter(None, reasons.values()))}")
        return dict.fromkeys(able, choice)
    for name in choice:
        if name not in reasons:
            raise UserError(f"{what}: no stage {name!r} in use; allowed: {', '.join(reasons)}")
    for name, reason in reasons.items():
        if name in choice and reason is not None and choice[name] != neutral:
            raise UserError(f"{what}: {reason}; remove {name}={choice[name]}")
    return {name: choice[name] for name, reason in reasons.items() if name in choice and reason is None}


def _number(what: str, stage: Stage, value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{what}: {value!r} for {stage.name} is not a number; allowed {low:g} to {high:g}") from None
    if not low <= number <= high:
        raise UserError(f"{what}: {value} for {stage.name} is out of range; allowed {low:g} to {high:g}")
    return number


def _one_of(what: str, stage: Stage, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UserError(f"{what}: {value!r} for {stage.name} is not known; allowed: {', '.join(allowed)}")
    return str(value)


def _augmentation(
    stage: Stage, default: SamplingConfig, mode: Any, s: Any, *, why_not_truncated: str | None
) -> dict[str, Any]:
    """Settle mode and s of a gaussian stage."""
    conditioning = stage.config.conditioning
    assert conditioning is not None
    settled = _one_of("augmentation", stage, mode, SAMPLING_MODES) if mode is not None else default.augmentation
    if settled == "truncated" and why_not_truncated is not None:
        if mode is not None:
            raise UserError(
                f"augmentation: truncated is not available, {stage.name} {why_not_truncated}; "
                "allowed: nontruncated, none"
            )
        settled = "nontruncated"
    strength = default.s if s is None else _number("s", stage, s, 0, conditioning.s_max)
    if settled == "none" and s is not None and strength > 0:
        if mode is not None:
            raise UserError(f"s: {strength:g} for {stage.name} does not go with augmentation none; allowed 0")
        settled = "nontruncated"  # a strength was asked for, so it must act
    return {"augmentation": settled, "s": 0.0 if settled == "none" else strength}


def resolve_settings(
    stages: Sequence[Stage],
    defaults: Mapping[str, SamplingConfig],
    requests: Requests,
    *,
    truncated: Mapping[str, bool],
) -> dict[str, SamplingConfig]:
    """The settings of every stage that will run.

    Args:
        stages: the stages that will run, in order; if the first is an SR stage, it starts from given images.
        defaults: each stage's default settings in its cascade.
        requests: what was asked for.
        truncated: for each stage, whether the stage below it shares its schedule.

    Raises:
        UserError: anything asked for that a stage cannot do, with the value and what is allowed.
    """
    choices = _spread_all(stages, requests)
    names = [stage.name for stage in stages]
    for name, keys in (requests.more or {}).items():
        if name not in names:
            raise UserError(f"set: no stage {name!r} in use; allowed: {', '.join(names)}")
        if not isinstance(keys, Mapping):
            raise UserError(f"set: {keys!r} for {name} is not a mapping; allowed: settings such as {{'start': 0.6}}")
        for key in ("augmentation", "s"):
            if key in keys:
                raise UserError(f"set: {name}.{key} has an option of its own; give {key} as that")
    settled: dict[str, SamplingConfig] = {}
    for position, stage in enumerate(stages):
        default = stage.config.settled(defaults[stage.name])
        changes = {key: values[stage.name] for key, values in choices.items() if stage.name in values}
        if "sampler" in changes:
            changes["sampler"] = _one_of("sampler", stage, changes["sampler"], get_args(SamplerName))
        if "guidance" in changes:
            changes["guidance"] = _number("guidance", stage, changes["guidance"], 0, 100)
        if stage.config.why_no_s() is None:
            why = None if truncated.get(stage.name) else "was assembled with --no-truncated"
            if position == 0:
                why = "starts from given images"
            mode, s = changes.get("augmentation"), changes.get("s")
            changes |= _augmentation(stage, default, mode, s, why_not_truncated=why)
        more = dict((requests.more or {}).get(stage.name, {}))
        settled[stage.name] = _validated(stage, default, changes | more)
        _check_more(stage, settled[stage.name])
    for low, above in zip_longest(stages, stages[1:]):
        # Refuses steps that the stage does not have.
        grids = stage_grids(low, settled[low.name], stop_for(above, settled))
        if settled[low.name].start is None:
            _warn_of_late_start(low, grids[0][0])
    return settled


def _warn_of_late_start(stage: Stage, first: Level) -> None:
    """Say so where pure noise is given to a network that is told of an image in it: samples suffer."""
    timesteps = stage.diffusion.schedule.timesteps
    if first.alpha_bar > max(_STILL_NOISE, stage.diffusion.schedule.level(1.0).alpha_bar):
        _LOG.warning(
            "%s: sampling begins with noise, at a level where the image should already have %.0f%% of its size; %s",
            stage.name,
            100 * math.sqrt(first.alpha_bar),
            "larger end points or sigma_range begin further out"
            if timesteps is None
            else "more steps begin further out",
        )


def _spread_all(stages: Sequence[Stage], requests: Requests) -> dict[str, dict[str, Any]]:
    """Every request as setting -> stage name -> value, for the stages that it means something to."""

    def always(config: StageConfig) -> None:
        """It means something to every stage."""

    choices = {
        "steps": _spread("steps", requests.steps, stages, always, None),
        "sampler": _spread("sampler", requests.sampler, stages, always, None),
        "augmentation": _spread("augmentation", requests.augmentation, stages, StageConfig.why_no_s, "none"),
        "s": _spread("s", requests.s, stages, StageConfig.why_no_s, None),
        "guidance": _spread("guidance", requests.guidance, stages, StageConfig.why_no_guidance, 1.0),
    }
    if isinstance(requests.augmentation, str):  # also where no stage would look at it
        _one_of("augmentation", stages[0], requests.augmentation, SAMPLING_MODES)
    return choices


def _validated(stage: Stage, default: SamplingConfig, changes: dict[str, Any]) -> SamplingConfig:
    try:
        return SamplingConfig.model_validate(default.model_dump() | changes)
    except ValidationError as error:
        raise UserError(f"{stage.name}: {explain(error)}") from None


def _check_more(stage: Stage, settings: SamplingConfig) -> None:
    """``UserError`` for settings that the stage cannot follow: it lacks a guide, an image to start from, or a level."""
    if settings.guide != 1 and stage.guide is None:
        raise UserError(f"guide: {settings.guide:g} needs a guide for {stage.name}; cdm assemble --guide gives it one")
    if settings.guidance != 1 and stage.config.classes is None:
        raise UserError(f"guidance: {stage.config.why_no_guidance()}; allowed 1")
    try:
        stage.config.check_sampling(settings)
    except ValueError as error:
        raise UserError(f"{stage.name}: {error}") from None


def stop_for(above: Stage | None, settings: Mapping[str, SamplingConfig]) -> float:
    """The time at which a stage must stop: the s of a truncated stage above it, else 0."""
    if above is None or settings[above.name].augmentation != "truncated":
        return 0.0
    return settings[above.name].s
