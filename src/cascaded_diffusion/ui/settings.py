"""What came from the page, checked: nothing that a browser sends is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cascaded_diffusion.cascade.sampling import LARGEST_SIGMA
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.ui.limits import LARGEST_SEED, SAMPLERS, Control, PageLimits, StageLimits

__all__ = ["Settings", "StageSettings", "choices", "read_class", "read_s", "read_settings", "with_s"]

_LONGEST_WORD = 60


@dataclass(frozen=True)
class StageSettings:
    """What was chosen for one stage; ``None`` for a control that it does not have, or a field that is empty."""

    steps: int | str
    sampler: str
    augmentation: str | None = None
    s: float | None = None
    guidance: float | None = None
    guide: float | None = None
    start: float | None = None
    interval_low: float | None = None
    interval_high: float | None = None
    grid: str | None = None

    @property
    def guidance_interval(self) -> tuple[float, float] | None:
        """The sigmas between which guidance acts; ``None`` is everywhere."""
        if self.interval_low is None or self.interval_high is None:
            return None
        return self.interval_low, self.interval_high


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
        stages[stage.name] = _stage_settings(stage, given)
    return Settings(classes, num, seed, stages)


def _stage_settings(stage: StageLimits, given: Mapping[Control, Any]) -> StageSettings:
    chosen = StageSettings(**{name: _control(stage, name, value) for name, value in given.items()})
    low, high = chosen.interval_low, chosen.interval_high
    if (low is None) != (high is None):
        raise UserError(f"guidance of {stage.name}: one sigma alone is no interval; give both or neither")
    if low is not None and high is not None and low >= high:
        raise UserError(f"guidance of {stage.name}: {low:g} to {high:g} is not an interval; give the smaller first")
    # The page shows the start as out of use then, as it does s without augmentation.
    return replace(chosen, start=None) if chosen.augmentation == "truncated" else chosen


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


def choices(limits: PageLimits, settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings in the form that :meth:`Cascade.sample` takes: setting -> stage name -> value.

    Guide, start, interval and grid are under ``more``, of the stages where they are in use, or would be by default.
    """
    names: tuple[Control, ...] = ("steps", "sampler", "augmentation", "s", "guidance")
    asked: dict[str, dict[str, Any]] = {name: {} for name in names}
    for stage, chosen in settings.stages.items():
        for name in names:
            value = getattr(chosen, name)
            if value is not None and not (name == "s" and chosen.augmentation == "none"):
                asked[name][stage] = value
    asked["more"] = {
        stage: more for stage, chosen in settings.stages.items() if (more := _more(limits.stage(stage), chosen))
    }
    return {name: values for name, values in asked.items() if values}


def _more(stage: StageLimits, chosen: StageSettings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if chosen.guide is not None and (chosen.guide, stage.guide) != (1, 1):
        found["guide"] = chosen.guide
    if (chosen.start, stage.start) != (None, None):
        found["start"] = chosen.start
    if (chosen.guidance_interval, stage.interval) != (None, None):
        found["guidance_interval"] = chosen.guidance_interval
    if chosen.grid is not None and (chosen.grid, stage.grid) != ("time", "time"):
        found["grid"] = chosen.grid
    return found


_WORDS: dict[Control, str] = {"interval_low": "guidance above sigma", "interval_high": "guidance up to sigma"}


def _control(stage: StageLimits, control: Control, value: Any) -> Any:
    what = f"{_WORDS.get(control, control)} of {stage.name}"
    if control in ("start", "interval_low", "interval_high"):
        low, high = (stage.least_start, 1) if control == "start" else (0, LARGEST_SIGMA)
        return None if value is None or value == "" else _number(what, value, low, high)
    if control == "steps":
        if isinstance(stage.steps, str):
            return _word(what, value)  # the cascade says which words mean something
        return _whole(what, value, 1, stage.most_steps)
    if control == "sampler":
        return _one_of(what, value, SAMPLERS)
    if control == "augmentation":
        return _one_of(what, value, stage.augmentations)
    if control == "grid":
        return _one_of(what, value, stage.grids)
    if control == "s":
        return read_s(stage, value)
    return _number(what, value, 0, stage.most_guide if control == "guide" else stage.most_guidance)


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
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.nan
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
