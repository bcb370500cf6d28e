"""Giving the stages of a new cascade their guides, worse copies of themselves for autoguidance (2406.02507)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.config import explain
from cascaded_diffusion.errors import UserError

__all__ = ["DEFAULT_WEIGHT", "GuidePart", "add_guides", "default_sampling", "parse_guide"]

DEFAULT_WEIGHT = 2.0
"""Of a guide that comes without one; the paper's best lie around 2."""


class GuidePart(NamedTuple):
    """Which stage is guided, by what, and for a run by which checkpoint."""

    stage: str
    path: Path
    images: int | None


def parse_guide(text: str) -> GuidePart:
    """``STAGE=PART`` or ``STAGE=PART@IMAGES``; ``UserError`` for something else."""
    stage, equals, place = text.partition("=")
    path, at, images = place.rpartition("@")
    if not at or not (images.isascii() and images.isdigit() and len(images) < 20):
        path, images = place, ""
    if not equals or not stage.strip() or not path:
        raise UserError(f"--guide: {text!r} is not of the form STAGE=PART or STAGE=PART@IMAGES")
    return GuidePart(stage.strip(), Path(path), int(images) if images else None)


def add_guides(stages: Sequence[Stage], guides: Sequence[GuidePart], *, ema: str | None = None) -> None:
    """Load each guide and give it to its stage.

    Args:
        stages: of the cascade to be.
        guides: which stage gets what.
        ema: which average of a run's weights, as for the stages.

    Raises:
        UserError: a stage that is not there or named twice, or a guide that does not fit it.
    """
    from cascaded_diffusion.training.export import load_part

    known = {stage.name: stage for stage in stages}
    for number, part in enumerate(guides):
        if part.stage not in known:
            raise UserError(f"--guide: no stage {part.stage!r} among the parts; allowed: {', '.join(known)}")
        if part.stage in [other.stage for other in guides[:number]]:
            raise UserError(f"--guide: {part.stage} is named twice; a stage has one guide")
        guide, _, _ = load_part(part.path, images=part.images, ema=ema)
        known[part.stage].guided_by(guide)


def default_sampling(stage: Stage, sampling: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """A stage's default settings in a new cascade: with a guide, a weight for it that acts.

    Raises:
        UserError: naming the stage and the key that is wrong.
    """
    if stage.config.classes is None and changes.get("guidance", 1) != 1:
        raise UserError(f"--set: {stage.name}.guidance: {changes['guidance']} needs classes, which it does not have")
    weight = {"guide": DEFAULT_WEIGHT} if stage.guide is not None and sampling.guide == 1 else {}
    try:
        return SamplingConfig.model_validate(sampling.model_dump() | weight | dict(changes))
    except ValidationError as error:
        raise UserError(f"--set: {stage.name}.{explain(error)}") from None
