"""``cascade.json``: which stages a cascade has, the hashes of their files, and how they are sampled by default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.stage import CONFIG_FILE, GUIDE_FOLDER, WEIGHTS_FILE, Stage, StageConfig
from cascaded_diffusion.config import ClassNames, Facts, Hashes, Name, StrictModel, explain
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json, sha256_of
from cascaded_diffusion.reading.plain import refuse_outside

__all__ = [
    "MANIFEST_FILE",
    "CascadeManifest",
    "StageEntry",
    "check_chain",
    "load_entry",
    "schedules_agree",
    "stage_hashes",
    "verify_stage",
]

MANIFEST_FILE = "cascade.json"
_STAGE_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_GUIDE_FILES = tuple(f"{GUIDE_FOLDER}/{name}" for name in _STAGE_FILES)


class StageEntry(StrictModel):
    """One stage in ``cascade.json``."""

    name: Name = Field(description="The stage's name.")
    folder: Name = Field(description="Its folder, equal to its name.")
    sha256: Hashes = Field(
        description="SHA-256 of each of its files, checked when it is loaded; those of a guide are guide/FILE."
    )
    sampling: SamplingConfig = Field(description="Default sampling settings in this cascade.")
    truncated: bool = Field(default=False, description="Whether the stage below can be stopped at s for this one.")
    provenance: Facts = Field(default_factory=dict, description="Where the weights come from.")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"(base|sr)[1-9][0-9]{0,3}", name):
            raise ValueError(f"{name!r} is not a stage name; allowed: base<R> or sr<R>")
        return name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folder != self.name:
            raise ValueError(f"folder: {self.folder!r} must equal the stage's name {self.name!r}")
        if set(self.sha256) not in ({*_STAGE_FILES}, {*_STAGE_FILES, *_GUIDE_FILES}):
            raise ValueError(
                f"sha256: must name exactly {', '.join(_STAGE_FILES)}, and for a guide {', '.join(_GUIDE_FILES)} too"
            )
        if self.sampling.guide != 1 and not self.has_guide:
            raise ValueError(f"sampling.guide: {self.sampling.guide:g}, but {self.name} has no guide; allowed: 1")
        return self

    @property
    def has_guide(self) -> bool:
        """Whether a guide lies in the stage's folder."""
        return _GUIDE_FILES[0] in self.sha256


class CascadeManifest(StrictModel):
    """The content of ``cascade.json``."""

    format_version: Literal[1] = Field(default=1, description="Version of this file's layout.")
    stages: tuple[StageEntry, ...] = Field(
        min_length=1, max_length=16, description="The stages in order, the base first."
    )
    classes: int | None = Field(default=None, ge=1, le=1_000_000, description="Number of classes, or null.")
    class_names: ClassNames | None = Field(default=None, description="Their names, if known.")
    provenance: Facts = Field(default_factory=dict, description="Who made it, with what.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: {', '.join(names)} names one twice")
        return self

    @classmethod
    def read(cls, folder: Path) -> CascadeManifest:
        """Read and check ``cascade.json``; ``UserError`` names the key that is wrong, or a link out of the folder."""
        path = folder / MANIFEST_FILE
        refuse_outside(folder, path)
        if not path.is_file():
            raise UserError(f"{folder}: not a cascade (no {MANIFEST_FILE}); make one with cdm assemble")
        value = read_json(path)
        try:
            manifest = cls.model_validate(value)
        except ValidationError as error:
            raise UserError(f"{path}: {explain(error, value)}") from None
        refuse_outside(folder, *(folder / entry.folder / name for entry in manifest.stages for name in entry.sha256))
        return manifest


def stage_hashes(folder: Path, *, guided: bool = False) -> dict[str, str]:
    """SHA-256 of a stage folder's files, with ``guided`` also of its guide's."""
    return {name: sha256_of(folder / name) for name in (*_STAGE_FILES, *(_GUIDE_FILES if guided else ()))}


def verify_stage(folder: Path, entry: StageEntry) -> None:
    """Compare a stage folder's files with their hashes; ``UserError`` names the file that is missing or differs."""
    for name, expected in entry.sha256.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing from the cascade")
        if sha256_of(path) != expected:
            raise UserError(f"{path}: not the file that was assembled (its SHA-256 is not that in {MANIFEST_FILE})")


def load_entry(folder: Path, entry: StageEntry) -> Stage:
    """The stage of an entry with its guide, if it has one, its files compared with their hashes."""
    verify_stage(folder, entry)
    return Stage.load(folder, guided=entry.has_guide)


def schedules_agree(low: StageConfig, high: StageConfig) -> bool:
    """Whether s means the same to both stages: the SR stage was augmented with the schedule of the stage below."""
    conditioning = high.conditioning
    if conditioning is None or conditioning.low_schedule is None:
        return False
    return conditioning.low_schedule.meaning == low.diffusion.noise_schedule.meaning


def check_chain(configs: Sequence[StageConfig], *, truncated: bool = True) -> None:
    """Refuse stages that do not form a cascade; the ``UserError`` names both stages and what differs.

    Args:
        configs: in order.
        truncated: whether truncated sampling is wanted, which needs equal schedules.
    """
    if not configs:
        raise UserError("a cascade needs at least one stage, none was given")
    base = configs[0]
    if not base.is_base:
        raise UserError(f"the first stage of a cascade is a base stage, {base.name} is not one")
    for low, high in pairwise(configs):
        _check_images(low, high)
        if high.classes is not None and (high.classes, high.class_names) != (base.classes, base.class_names):
            raise UserError(
                f"{high.name} has {_classes(high)}, {base.name} has {_classes(base)}; "
                "the classes of a cascade must agree"
            )
        if truncated:
            _check_schedule(low, high)


def _check_images(low: StageConfig, high: StageConfig) -> None:
    """Refuse a stage that does not take the images of the one below."""
    if high.conditioning is None:
        raise UserError(f"{high.name}: a base stage can only be the first of a cascade, not after {low.name}")
    side = high.conditioning.low_resolution
    if side != low.resolution:
        raise UserError(f"{high.name} enlarges images of {side} pixels, {low.name} makes {low.resolution}")
    if high.channels != low.channels:
        raise UserError(f"{high.name} has {high.channels} image channels, {low.name} has {low.channels}")


def _check_schedule(low: StageConfig, high: StageConfig) -> None:
    """Refuse a gaussian stage to which s means something else than to the stage below."""
    conditioning = high.conditioning
    if conditioning is None or conditioning.augmentation != "gaussian":
        return
    wanted = conditioning.low_schedule
    assert wanted is not None  # settled by StageConfig
    if not schedules_agree(low, high):
        raise UserError(
            f"{high.name} was trained for a stage below with schedule {wanted.describe()}, {low.name} has "
            f"{low.diffusion.noise_schedule.describe()}; --no-truncated gives up truncated sampling and assembles them"
        )


def _classes(config: StageConfig) -> str:
    if config.classes is None:
        return "no classes"
    names = f" ({', '.join(config.class_names[:3])}, ...)" if config.class_names else ""
    return f"{config.classes} classes{names}"
