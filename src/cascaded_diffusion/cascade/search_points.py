"""What a search looks at: points, which are settings of one stage, and the passes over all samples that they cost."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import Endpoints, Guidance, SamplingConfig, StepCount, Strength
from cascaded_diffusion.cascade.settings import Requests, resolve_settings
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.cascade.walk import Plan
from cascaded_diffusion.config import StrictModel, explain
from cascaded_diffusion.errors import UserError

__all__ = [
    "DEFAULT_S",
    "MODES",
    "SETTINGS",
    "Pass",
    "Point",
    "Sweep",
    "count_passes",
    "distinct_passes",
    "pick_stages",
    "points_of",
    "settings_to_try",
    "stages_up_to",
]

SETTINGS = ("augmentation", "s", "steps", "guidance", "endpoints")
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

    @property
    def asked(self) -> tuple[str, ...]:
        """The settings that were named."""
        return tuple(name for name in SETTINGS if getattr(self, name) is not None)


class Pass(NamedTuple):
    """All samples once through one stage: the unit of a search's cost, and what its points share.

    It is settled by all that happened to the samples before, so equal passes give equal images and are made once.
    """

    stage: str
    settings: SamplingConfig
    stop: float
    """Time at which the stage stops: s of a truncated stage above it, else 0."""
    below: Pass | None

    @property
    def chain(self) -> tuple[Pass, ...]:
        """This pass and all below it, the base's first."""
        return (*(self.below.chain if self.below else ()), self)

    @property
    def key(self) -> str:
        """A name for its files: the stage, and a hash of the settings of everything up to here."""
        said = [(part.stage, part.settings.identity(), part.stop) for part in self.chain]
        return f"{self.stage}-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:10]}"


class Point(NamedTuple):
    """One choice of settings for the searched stage: ``swept`` says which, ``work`` what it takes to judge it."""

    swept: dict[str, Any]
    work: Pass

    @property
    def settings(self) -> dict[str, SamplingConfig]:
        """Of every stage that runs."""
        return {part.stage: part.settings for part in self.work.chain}

    @property
    def label(self) -> str:
        """The choice in words, such as ``truncated s=0.15, 25 steps``."""
        swept = self.swept
        words = []
        if "s" in swept:
            words.append("s=0" if swept["s"] == 0 else f"{swept['augmentation']} s={swept['s']:g}")
        if "steps" in swept:
            words.append(f"{swept['steps']} steps")
        if "guidance" in swept:
            words.append(f"guidance {swept['guidance']:g}")
        if "endpoints" in swept:
            words.append("endpoints {:g}:{:g}".format(*swept["endpoints"]))
        return ", ".join(words)

    @property
    def key(self) -> str:
        """A name for its files: the choice in a readable form, and the pass's hash."""
        words = self.label.replace(", ", "-").replace(" ", "-").replace(":", "-").replace("=", "")
        stage, _, digest = self.work.key.rpartition("-")
        return f"{stage}-{words}-{digest}"


def distinct_passes(points: Iterable[Point]) -> list[Pass]:
    """Every pass that the points need, once, each after those it stands on."""
    return list(dict.fromkeys(part for point in points for part in point.work.chain))


def count_passes(points: Iterable[Point]) -> dict[str, int]:
    """Passes through each stage. All non-truncated points share one pass of the stages below."""
    return dict(Counter(part.stage for part in distinct_passes(points)))


def stages_up_to(cascade: Cascade, name: str) -> list[Stage]:
    """The stages that run to make the images of stage ``name``."""
    names = list(cascade.stages)
    return [cascade.stages[each] for each in names[: names.index(name) + 1]]


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
            close = difflib.get_close_matches(word, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"stage: no stage {word!r} in this cascade; allowed: {', '.join(names)} or all{hint}")
        if words.count(word) > 1:
            raise UserError(f"stage: {text!r} names {word} twice")
    wanted = [stage for name, stage in cascade.stages.items() if name in words]
    for setting in sweep.asked:
        reasons = [_why_not(stage, setting) for stage in wanted]
        if all(reasons):
            raise UserError(f"{setting}: cannot be swept: {'; '.join(filter(None, reasons))}")
    found = {stage.name: settings_to_try(stage, sweep, truncated=cascade.truncated[stage.name]) for stage in wanted}
    for name, choices in found.items():
        if not choices and text != "all":
            raise UserError(f"stage: nothing to sweep for {name}; give it steps or guidance, or another stage")
    if not any(found.values()):
        raise UserError(f"stage: {text} has no s to sweep; give steps or guidance")
    return {name: choices for name, choices in found.items() if choices}


def settings_to_try(stage: Stage, sweep: Sweep, *, truncated: bool) -> list[dict[str, Any]]:
    """Every combination of the swept settings that mean something to the stage; empty if none does.

    Args:
        stage: the searched one.
        sweep: what is swept.
        truncated: whether the stage below can be stopped at s for it.

    Raises:
        UserError: truncated was asked for by name, and is not available.
    """
    parts: list[list[dict[str, Any]]] = []
    wants_s = not sweep.asked or bool({"s", "augmentation"} & set(sweep.asked))
    if wants_s and _why_not(stage, "s") is None:
        parts.append(_strengths(stage, sweep, truncated=truncated))
    for setting in ("steps", "guidance", "endpoints"):
        values = getattr(sweep, setting)
        if values is not None and _why_not(stage, setting) is None:
            parts.append([{setting: value} for value in dict.fromkeys(values)])
    if not parts:
        return []
    return [{key: value for part in chosen for key, value in part.items()} for chosen in product(*parts)]


def _strengths(stage: Stage, sweep: Sweep, *, truncated: bool) -> list[dict[str, Any]]:
    conditioning = stage.config.conditioning
    assert conditioning is not None  # _why_not has seen to it
    modes: Sequence[str] = MODES if truncated else ("nontruncated",)
    if sweep.augmentation is not None:
        modes = [mode for mode in MODES if mode in sweep.augmentation]
        if "truncated" in modes and not truncated:
            raise UserError(
                f"augmentation: truncated is not available, {stage.name} was assembled with --no-truncated; "
                "allowed: nontruncated"
            )
    values = sweep.s or [s for s in DEFAULT_S if s <= conditioning.s_max] + [conditioning.s_max] * (
        conditioning.s_max < DEFAULT_S[1]
    )
    # At s = 0 nothing is noised and nothing stopped: one point for both modes. It is listed first, for it wins ties.
    clean = [{"augmentation": "none", "s": 0.0}] if 0 in values else []
    return clean + [{"augmentation": mode, "s": s} for mode in modes for s in sorted(set(values)) if s != 0]


def _why_not(stage: Stage, setting: str) -> str | None:
    """Why a setting means nothing to a stage, or ``None``."""
    config, conditioning = stage.config, stage.config.conditioning
    if setting in ("s", "augmentation"):
        if conditioning is None:
            return f"{stage.name} is a base stage and has no s"
        if conditioning.augmentation != "gaussian":
            return f"{stage.name} was trained with augmentation {conditioning.augmentation} and has no s"
    if setting == "guidance" and config.classes is None:
        return f"{stage.name} has no classes to be guided by"
    if setting == "guidance" and config.training.class_dropout == 0:
        return f"{stage.name} was trained with training.class_dropout 0 and knows no unguided output"
    if setting == "endpoints" and not config.diffusion.noise_schedule.is_continuous:
        schedule = config.diffusion.noise_schedule.describe()
        return f"{stage.name} was trained with {schedule} and takes no sampling schedule of its own"
    return None


def points_of(
    cascade: Cascade, name: str, choices: Sequence[Mapping[str, Any]], defaults: Mapping[str, SamplingConfig]
) -> list[Point]:
    """The points of one stage's search.

    Args:
        cascade: the chain.
        name: the searched stage.
        choices: as from :func:`settings_to_try`.
        defaults: settings of every stage; what was found best for the stages below is in them.

    Raises:
        UserError: a value that the stage cannot do, with the range that it can.
    """
    stages = stages_up_to(cascade, name)
    points = []
    for choice in choices:
        own = defaults[name]
        if "endpoints" in choice:
            own = _with_endpoints(name, own, choice["endpoints"])
        asked = {key: {name: value} for key, value in choice.items() if key != "endpoints"}
        settings = resolve_settings(stages, {**defaults, name: own}, Requests(**asked), truncated=cascade.truncated)
        points.append(Point(dict(choice), _last_pass(stages, settings)))
    return points


def _with_endpoints(name: str, settings: SamplingConfig, endpoints: tuple[float, float]) -> SamplingConfig:
    try:
        return SamplingConfig.model_validate(settings.model_dump() | {"endpoints": endpoints})
    except ValidationError as error:
        raise UserError(f"{name}: {explain(error).removeprefix('the file: ')}") from None


def _last_pass(stages: Sequence[Stage], settings: dict[str, SamplingConfig]) -> Pass:
    plan = Plan(tuple(stages), settings)
    below: Pass | None = None
    for position, stage in enumerate(stages):
        below = Pass(stage.name, settings[stage.name], plan.stop(position), below)
    assert below is not None  # a cascade has stages
    return below
