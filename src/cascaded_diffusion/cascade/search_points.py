"""What a search looks at: points, which are settings of one stage, and the passes over all samples that they cost."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.settings import Requests, resolve_settings
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.cascade.walk import Plan
from cascaded_diffusion.config import explain
from cascaded_diffusion.errors import UserError

__all__ = ["Pass", "Point", "count_passes", "distinct_passes", "points_of", "stages_up_to"]

_NO_REQUEST = ("start", "guide", "guidance_interval", "grid")
"""Settings without a field of their own in :class:`Requests`."""


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
        return ", ".join(words + self._optional_words())

    def _optional_words(self) -> list[str]:
        swept = self.swept
        words = []
        if "start" in swept:
            words.append("from noise" if swept["start"] is None else f"from time {swept['start']:g}")
        if "guide" in swept:
            words.append(f"guide {swept['guide']:g}")
        if "guidance_interval" in swept:
            interval = swept["guidance_interval"]
            words.append("at every sigma" if interval is None else "at sigma {:g} to {:g}".format(*interval))
        if "grid" in swept:
            words.append(f"{swept['grid']} grid")
        return words

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
        more = {key: value for key, value in choice.items() if key in _NO_REQUEST}
        asked = {key: {name: value} for key, value in choice.items() if key not in ("endpoints", *_NO_REQUEST)}
        requests = Requests(**asked, more={name: more} if more else None)
        settings = resolve_settings(stages, {**defaults, name: own}, requests, truncated=cascade.truncated)
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
