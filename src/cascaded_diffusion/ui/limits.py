"""What the page lets a person choose: the bounds of every control, made from what the cascade can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import ValidationError

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import GridName, SamplingConfig
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.conditioning.augmentation import SAMPLING_MODES
from cascaded_diffusion.diffusion.samplers import SamplerName

__all__ = ["LARGEST_SEED", "SAMPLERS", "Control", "PageLimits", "StageLimits", "page_limits"]

SAMPLERS: tuple[str, ...] = get_args(SamplerName)
LARGEST_SEED = 2**31 - 1

_FEWEST_MOST_STEPS = 100
_MOST_STEPS = 1000
_STRONGEST_GUIDANCE = 10.0
_LEAST_START = 0.01

Control = Literal[
    "steps", "sampler", "augmentation", "s", "guidance", "guide", "start", "interval_low", "interval_high", "grid"
]


@dataclass(frozen=True)
class StageLimits:
    """The controls of one stage.

    Attributes:
        name: such as ``sr32``.
        resolution: side of its images in pixels.
        low_resolution: side of the images it enlarges; ``None`` for a base stage.
        steps: the default; a word such as ``ddim50`` where the cascade says so.
        most_steps: no run of the page may take more.
        sampler: the default.
        augmentations: the modes to choose from; empty for a stage without s.
        augmentation: the default mode.
        s: the default strength.
        s_max: the largest strength; ``None`` for a stage without s.
        guidance: the default; ``None`` for a stage that was trained without class dropout.
        most_guidance: the largest.
        guide: the default weight of its guide; ``None`` for a stage without one.
        most_guide: the largest.
        start: of an SR stage, the default time to start from the enlarged image; ``None`` is from noise.
        least_start: the smallest time.
        interval: the default sigmas between which guidance of either kind acts; ``None`` is everywhere.
        grid: what the levels are even in by default.
        grids: what they may be even in: several for a stage in continuous time whose other settings leave it open.
        knows_no_class: whether it can enlarge an image whose class nobody names.
    """

    name: str
    resolution: int
    low_resolution: int | None
    steps: int | str
    most_steps: int
    sampler: str
    augmentations: tuple[str, ...]
    augmentation: str
    s: float
    s_max: float | None
    guidance: float | None
    most_guidance: float
    guide: float | None
    most_guide: float
    start: float | None
    least_start: float
    interval: tuple[float, float] | None
    grid: str
    grids: tuple[str, ...]
    knows_no_class: bool

    @property
    def controls(self) -> tuple[Control, ...]:
        """Its controls, in the order in which the page has them."""
        names: list[Control] = ["steps", "sampler"]
        if self.s_max is not None:
            names += ["augmentation", "s"]
        if self.guidance is not None:
            names.append("guidance")
        if self.guide is not None:
            names.append("guide")
        if self.low_resolution is not None:
            names.append("start")
        if self.guidance is not None or self.guide is not None:
            names += ["interval_low", "interval_high"]
        if len(self.grids) > 1:
            names.append("grid")
        return tuple(names)

    @property
    def interval_low(self) -> float | None:
        """The default sigma above which guidance acts."""
        return None if self.interval is None else self.interval[0]

    @property
    def interval_high(self) -> float | None:
        """The default sigma up to which guidance acts."""
        return None if self.interval is None else self.interval[1]

    def default(self, control: Control) -> int | float | str | None:
        """What a control shows at first; ``None`` is an empty field."""
        value: int | float | str | None = getattr(self, control)
        return value


@dataclass(frozen=True)
class PageLimits:
    """The controls of the page.

    Attributes:
        stages: in order, the base first.
        classes: number of classes, or ``None``.
        class_names: what to call them, one for each class; empty without classes.
        most_images: of one run.
    """

    stages: tuple[StageLimits, ...]
    classes: int | None
    class_names: tuple[str, ...]
    most_images: int

    def stage(self, name: str) -> StageLimits:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def comparable(self) -> tuple[StageLimits, ...]:
        """The stages that have an s to compare."""
        return tuple(stage for stage in self.stages if stage.s_max is not None)

    @property
    def enlarging(self) -> tuple[StageLimits, ...]:
        """The SR stages, which can start from a person's own image."""
        return tuple(stage for stage in self.stages if stage.low_resolution is not None)

    def from_stage(self, name: str) -> tuple[StageLimits, ...]:
        """That stage and those after it."""
        names = [stage.name for stage in self.stages]
        return self.stages[names.index(name) :]

    def knows_no_class(self, start: str) -> bool:
        """Whether the stages from ``start`` on can work without a class."""
        return all(stage.knows_no_class for stage in self.from_stage(start))

    @property
    def count(self) -> int:
        """How many images a new page asks for: one of each class, or eight."""
        return min(self.classes or 8, 12, self.most_images)


def page_limits(cascade: Cascade, most_images: int) -> PageLimits:
    """The limits of a page about ``cascade`` on which one run makes at most ``most_images``."""
    stages = tuple(
        _stage_limits(stage, cascade.defaults[name], truncated=cascade.truncated[name])
        for name, stage in cascade.stages.items()
    )
    names = cascade.class_names or tuple(f"class {i}" for i in range(cascade.classes or 0))
    return PageLimits(stages, cascade.classes, tuple(names), most_images)


def _stage_limits(stage: Stage, default: SamplingConfig, *, truncated: bool) -> StageLimits:
    conditioning = stage.config.conditioning
    gaussian = stage.config.why_no_s() is None
    modes = tuple(mode for mode in SAMPLING_MODES if mode != "truncated" or truncated) if gaussian else ()
    guided = stage.config.why_no_guidance() is None
    return StageLimits(
        name=stage.name,
        resolution=stage.config.resolution,
        low_resolution=None if conditioning is None else conditioning.low_resolution,
        steps=default.steps,
        most_steps=_most_steps(stage, default),
        sampler=default.sampler,
        augmentations=modes,
        augmentation="nontruncated" if default.augmentation == "truncated" and not truncated else default.augmentation,
        s=default.s,
        s_max=conditioning.s_max if gaussian and conditioning is not None else None,
        guidance=default.guidance if guided else None,
        most_guidance=max(_STRONGEST_GUIDANCE, default.guidance),
        guide=None if stage.guide is None else default.guide,
        most_guide=max(_STRONGEST_GUIDANCE, default.guide),
        start=default.start,
        least_start=min(_LEAST_START, default.start or 1),
        interval=default.guidance_interval,
        grid=default.grid,
        grids=tuple(name for name in get_args(GridName) if _goes_with(stage, default, name)),
        knows_no_class=stage.config.classes is None or guided,
    )


def _goes_with(stage: Stage, default: SamplingConfig, grid: str) -> bool:
    """Whether a stage can have a grid beside its other settings, such as end points of a sampling schedule."""
    try:
        stage.config.check_sampling(SamplingConfig.model_validate(default.model_dump() | {"grid": grid}))
    except (ValidationError, ValueError):
        return False
    return True


def _most_steps(stage: Stage, default: SamplingConfig) -> int:
    """Four times the default within [100, 1000], never below the default, never above T of a discrete stage."""
    timesteps = stage.diffusion.schedule.timesteps
    usual = default.steps if isinstance(default.steps, int) else _MOST_STEPS
    most = max(usual, min(max(4 * usual, _FEWEST_MOST_STEPS), _MOST_STEPS))
    return most if timesteps is None else min(most, timesteps)
