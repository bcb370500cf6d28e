"""Recipes: a whole cascade in one YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cascaded_diffusion.cascade.stage import StageConfig, StageRecipe
from cascaded_diffusion.config import Name, StrictModel, explain, shorten
from cascaded_diffusion.diffusion.schedule import ScheduleConfig
from cascaded_diffusion.errors import UserError, did_you_mean
from cascaded_diffusion.reading.plain import read_bytes
from cascaded_diffusion.reading.yaml_text import MOST_BYTES, parse_yaml
from cascaded_diffusion.recipes.packaged import packaged_names, read_packaged

__all__ = ["Recipe", "load_recipe", "parse_overrides", "recipe_text", "stage_config"]


class Recipe(StrictModel):
    """A cascade to be trained: what the data must be like, and its stages in order."""

    name: Name = Field(description="The recipe's name.")
    channels: Annotated[int, Field(ge=1, le=4)] | Literal["from-data"] = Field(
        default="from-data", description="1 grey, 3 colour, or from-data."
    )
    classes: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["from-data"] | None = Field(
        default="from-data", description="Number of classes, null for none, or from-data."
    )
    flip: bool = Field(default=True, description="Mirror training images left to right at random, all stages alike.")
    stages: tuple[StageRecipe, ...] = Field(
        min_length=1, max_length=16, description="The base, then the SR stages, in order."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for position, stage in enumerate(self.stages):
            if stage.is_base != (position == 0):
                raise ValueError(f"stages.{stage.name}.name: the first stage is the base, all others are sr<R>")
        for low, high in pairwise(self.stages):
            _check_pair(low, high)
        for stage in self.stages:
            try:
                stage.check_sampling_grid()
            except UserError as error:
                raise ValueError(f"stages.{stage.name}.sampling.{error}") from None
        return self

    def stage(self, name: str) -> StageRecipe:
        """The stage of that name; ``UserError`` names those there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(
            f"stage: {name!r} is not in recipe {self.name}; allowed: {', '.join(s.name for s in self.stages)}"
        )


def _check_pair(low: StageRecipe, high: StageRecipe) -> None:
    """``ValueError`` for an SR stage that does not fit on the stage before it."""
    where = f"stages.{high.name}"
    if high.resolution <= low.resolution:
        raise ValueError(
            f"{where}.resolution: {high.name} must have a higher resolution than {low.name} before it, not "
            f"{high.resolution} after {low.resolution}"
        )
    for key, value in _of_below(low, high).items():
        given = getattr(high.conditioning, key)
        if given is not None and given != value:
            raise ValueError(
                f"{where}.conditioning.{key}: {_in_words(given)}, but {low.name} before it has "
                f"{_in_words(value)}; leave it out"
            )


def _of_below(low: StageRecipe, high: StageRecipe) -> dict[str, Any]:
    """What an SR stage's conditioning says of the stage before it."""
    told: dict[str, Any] = {"low_resolution": low.resolution}
    if high.conditioning is not None and high.conditioning.augmentation == "gaussian":
        told["low_schedule"] = low.diffusion.noise_schedule
    return told


def _in_words(value: Any) -> str:
    return value.describe() if isinstance(value, ScheduleConfig) else str(value)


def recipe_text(name: str) -> str:
    """The YAML text of a packaged recipe or of a file; ``UserError`` if there is neither."""
    if name in packaged_names():
        return read_packaged(name)
    path = Path(name)
    if not path.is_file():
        hint = did_you_mean(name, packaged_names())
        raise UserError(
            f"recipe: {name!r} is neither a file nor a packaged recipe ({', '.join(packaged_names())}){hint}"
        )
    try:
        return read_bytes(path, MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"recipe: {name} cannot be read ({error})") from None


def parse_overrides(settings: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Split ``key.path=value`` settings; values are read as YAML."""
    parsed = []
    for setting in settings:
        path, equals, value = setting.partition("=")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in path):  # bytes on the command line that are no UTF-8
            raise UserError(f"--set: {setting!r} is not valid text (UTF-8)")
        if not equals or not path.strip() or not all(path.split(".")):
            raise UserError(f"--set: {setting!r} is not of the form key.path=value")
        parsed.append((path.strip().split("."), parse_yaml(value, f"--set: the value of {shorten(setting)}")))
    return parsed


def _put(target: dict[str, Any], path: list[str], value: Any, setting: str) -> None:
    for key in path[:-1]:
        inner = target.get(key)
        if inner is None:
            inner = target[key] = {}
        if not isinstance(inner, dict):
            raise UserError(f"--set: {setting}: {key} is a value, not a group of settings")
        target = inner
    target[path[-1]] = value


def _stages_by_name(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of a recipe that has not been checked yet, as far as they can be told apart."""
    entries = raw.get("stages")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {entry["name"]: entry for entry in entries if isinstance(entry.get("name"), str)}


def _apply(raw: dict[str, Any], overrides: list[tuple[list[str], Any]], stage: str | None) -> None:
    """Put each override where its first word says.

    It names a key of the stage at hand (``training.batch_size``), of the recipe (``flip``), or ``stages.NAME.key``.
    """
    stages = _stages_by_name(raw)
    for path, value in overrides:
        setting = ".".join(path)
        if path[0] == "stages" and len(path) > 2:
            if path[1] not in stages:
                hint = did_you_mean(path[1], stages)
                raise UserError(f"--set: {setting}: no stage {path[1]!r}; allowed: {', '.join(stages)}{hint}")
            _put(stages[path[1]], path[2:], value, setting)
        elif path[0] in StageRecipe.model_fields and path[0] != "name":
            targets = [stages[stage]] if stage in stages else list(stages.values())
            for target in targets:
                _put(target, path, value, setting)
        elif path[0] in Recipe.model_fields and path[0] not in ("name", "stages"):
            _put(raw, path, value, setting)
        else:
            allowed = sorted((StageRecipe.model_fields.keys() | Recipe.model_fields.keys()) - {"name"})
            hint = did_you_mean(path[0], allowed)
            raise UserError(f"--set: unknown key {setting!r}{hint or ';'} allowed first words: {', '.join(allowed)}")


def load_recipe(name: str, *, overrides: Sequence[str] = (), stage: str | None = None) -> Recipe:
    """Load a packaged recipe or a YAML file and check all of it.

    Args:
        name: a packaged name, which wins, or a path.
        overrides: ``key.path=value`` settings; those of a stage apply to ``stage``, or to all if it is ``None``.
        stage: the stage at hand.

    Raises:
        UserError: naming the key's path, the value and what is allowed.
    """
    raw = parse_yaml(recipe_text(name), f"recipe: {name}")
    if not isinstance(raw, dict):
        raise UserError(f"recipe: {name} holds {type(raw).__name__}, not a mapping with name and stages")
    _apply(raw, parse_overrides(overrides), stage)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"recipe {name}: {explain(error, raw)}") from None


def _agree(what: str, wanted: int | str | None, found: int | None) -> int | None:
    if wanted == "from-data" or wanted == found:
        return found
    if what == "classes" and wanted is None:
        return None
    raise UserError(f"{what}: the recipe says {wanted}, the data has {found}")


def stage_config(
    recipe: Recipe, name: str, *, channels: int, classes: int | None, class_names: Sequence[str] | None
) -> StageConfig:
    """A stage's full configuration, once the data is known.

    Args:
        recipe: the whole recipe; an SR stage takes low resolution and schedule from the stage before.
        name: the stage.
        channels: of the data.
        classes: of the data, or ``None``.
        class_names: of the data, or ``None``.
    """
    stage = recipe.stage(name)
    raw = stage.model_dump()
    position = recipe.stages.index(stage)
    if stage.conditioning is not None:
        raw["conditioning"] |= _of_below(recipe.stages[position - 1], stage)
    settled_classes = _agree("classes", recipe.classes, classes)
    raw["channels"] = _agree("channels", recipe.channels, channels)
    raw["classes"] = settled_classes
    raw["class_names"] = None if settled_classes is None or class_names is None else list(class_names)
    raw["flip"] = recipe.flip
    try:
        return StageConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"recipe {recipe.name}: {explain(error, within=f'stages.{name}')}") from None
