"""What came from the page, checked: nothing that a browser sends is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.limits import LARGEST_SEED, SAMPLERS, Control, PageLimits, StageLimits

__all__ = ["Settings", "StageSettings", "choices", "read_class", "read_s", "read_settings", "with_s"]

_LONGEST_WORD = 60


@dataclass(frozen=True)
class StageSettings:
    """What was chosen for one stage; ``None`` for a control that it does not have."""

    steps: int | str
    sampler: str
    augmentation: str | None = None
    s: float | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Settings:
    """What was chosen: class ids (none means all), number of images, seed, and settings by stage name."""

    classes: tuple[int, ...]
    num: int
    seed: int
    stages: Mapping[str, StageSettings]


def read_settings(limits: PageLimits, values: Sequence[Any]) -> Settings:
    """The page's controls in their order: classes (if there are any), count, seed, then those of every stage.

    Raises:
        UserError: a value that the page would not let a person choose.
    """
    rest = list(values)
    expected = (limits.classes is not None) + 2 + sum(len(stage.controls) for stage in limits.stages)
    if len(rest) != expected:
        raise UserError(f"settings: {len(rest)} values came from the page; allowed: {expected}")
    classes = _classes(limits, rest.pop(0)) if limits.classes is not None else ()
    num = _whole("images", rest.pop(0), 1, limits.most_images)
    seed = _whole("seed", rest.pop(0), 0, LARGEST_SEED)
    stages = {}
    for stage in limits.stages:
        given = {control: rest.pop(0) for control in stage.controls}
        stages[stage.name] = StageSettings(**{name: _control(stage, name, value) for name, value in given.items()})
    return Settings(classes, num, seed, stages)


def read_class(limits: PageLimits, value: Any, start: str) -> int | None:
    """The class of a person's own image: an id, or ``None`` where the stages from ``start`` on need none."""
    if limits.classes is None:
        return None
    if value is None or value == -1:
        if limits.knows_no_class(start):
            return None
        raise UserError(f"class: {start} needs the class of the image; choose one")
    return _class(limits, value)


def read_s(stage: StageLimits, value: Any) -> float:
    """A strength for a stage, in [0, s_max]."""
    if stage.s_max is None:
        raise UserError(f"s: {stage.name} has no s")
    return _number(f"s of {stage.name}", value, 0, stage.s_max)


def with_s(settings: Settings, stage: str, s: float) -> Settings:
    """The same settings with another strength for a stage; one that did not augment does so, not truncated."""
    old = settings.stages[stage]
    mode = "nontruncated" if old.augmentation == "none" else old.augmentation
    return replace(settings, stages={**settings.stages, stage: replace(old, augmentation=mode, s=s)})


def choices(settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings in the form that :meth:`Cascade.sample` takes: setting -> stage name -> value."""
    names: tuple[Control, ...] = ("steps", "sampler", "augmentation", "s", "guidance")
    asked: dict[str, dict[str, Any]] = {name: {} for name in names}
    for stage, chosen in settings.stages.items():
        for name in names:
            value = getattr(chosen, name)
            if value is not None and not (name == "s" and chosen.augmentation == "none"):
                asked[name][stage] = value
    return {name: values for name, values in asked.items() if values}


def _control(stage: StageLimits, control: Control, value: Any) -> Any:
    what = f"{control} of {stage.name}"
    if control == "steps":
        if isinstance(stage.steps, str):
            return _word(what, value)  # the cascade says which words mean something
        return _whole(what, value, 1, stage.most_steps)
    if control == "sampler":
        return _one_of(what, value, SAMPLERS)
    if control == "augmentation":
        return _one_of(what, value, stage.augmentations)
    if control == "s":
        return read_s(stage, value)
    return _number(what, value, 0, stage.most_guidance)


def _classes(limits: PageLimits, value: Any) -> tuple[int, ...]:
    given = [] if value is None else value
    if not isinstance(given, list | tuple) or len(given) > (limits.classes or 0):
        raise UserError(f"classes: {_shown(value)} is not a list of at most {limits.classes} class numbers")
    return tuple(dict.fromkeys(_class(limits, one) for one in given))


def _class(limits: PageLimits, value: Any) -> int:
    return _whole("class", value, 0, (limits.classes or 1) - 1)


def _whole(what: str, value: Any, low: int, high: int) -> int:
    number = _number(what, value, low, high)
    if number != int(number):
        raise UserError(f"{what}: {number:g} is not a whole number; allowed {low} to {high}")
    return int(number)


def _number(what: str, value: Any, low: float, high: float) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        raise UserError(f"{what}: {_shown(value)} is not allowed; give a number from {low:g} to {high:.10g}")
    return number


def _one_of(what: str, value: Any, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise UserError(f"{what}: {_shown(value)} is not allowed; choose {', '.join(allowed)}")
    return value


def _word(what: str, value: Any) -> str:
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not 0 < len(text) <= _LONGEST_WORD:
        raise UserError(f"{what}: {_shown(value)} is not allowed; give a number, sections such as 10,20,30, or ddimN")
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_WORD else f"{text[:_LONGEST_WORD]}..."
