"""The reference of recipes and files, from the configuration models: every key with type, range, default, meaning."""

from __future__ import annotations

import importlib
import json
import pkgutil
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import cascaded_diffusion
from cascaded_diffusion.cascade.manifest import CascadeManifest
from cascaded_diffusion.cascade.search_store import SearchRecord
from cascaded_diffusion.cascade.stage import StageConfig, StageRecipe
from cascaded_diffusion.config import StrictModel
from cascaded_diffusion.data.manifest import Manifest
from cascaded_diffusion.evaluation.scores import Provenance
from cascaded_diffusion.recipes.recipe import Recipe
from docs_site.markup import code, generated_note, inline, table

__all__ = ["all_models", "files_page", "home", "reachable", "recipe_page"]

Model = type[StrictModel]

_FILES: tuple[tuple[str, str, Model], ...] = (
    ("A stage's `config.json`", "In a run folder, a checkpoint and a stage folder", StageConfig),
    ("A cascade's `cascade.json`", "In a cascade folder, beside one folder a stage", CascadeManifest),
    ("Prepared data's `manifest.json`", "In a folder of `cdm prepare`", Manifest),
    ("A search's `search.json`", "In a folder of `cdm search`", SearchRecord),
    ("A score", "What stands beside each value in a file of `cdm evaluate --json`", Provenance),
)
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def all_models() -> list[Model]:
    """Every configuration model of the package."""
    for module in pkgutil.walk_packages(cascaded_diffusion.__path__, "cascaded_diffusion."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[str, Model] = {}
    queue = [StrictModel]
    while queue:
        children = queue.pop().__subclasses__()
        queue += children
        found |= {model.__name__: model for model in children if model.__module__.startswith("cascaded_diffusion.")}
    return [found[name] for name in sorted(found)]


def reachable(root: Model) -> dict[Model, list[str]]:
    """The models that a root is made of, itself first, each with the paths of the keys that hold it."""
    found: dict[Model, list[str]] = {root: []}
    queue = [(root, "")]
    while queue:
        model, prefix = queue.pop(0)
        for key, field in model.model_fields.items():
            path = f"{prefix}.{key}" if prefix else key
            for inner, suffix in _models_in(field.annotation):
                queue += [] if inner in found else [(inner, path + suffix)]
                found.setdefault(inner, []).append(path + suffix)
    return found


def _models_in(annotation: Any, suffix: str = "") -> Iterator[tuple[Model, str]]:
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        yield annotation, suffix
        return
    origin = get_origin(annotation)
    marks: dict[object, str] = {tuple: "[]", list: "[]", dict: ".NAME"}
    for argument in get_args(annotation):
        yield from _models_in(argument, suffix + marks.get(origin, ""))


def recipe_page() -> str:
    """The reference of a recipe's keys as Markdown."""
    parts = [f"# Recipes and settings\n\n{generated_note('the configuration models')}\n\n{_RECIPE_INTRODUCTION}"]
    parts += [_section(model, paths, settable=True) for model, paths in reachable(Recipe).items()]
    return "\n\n".join(parts) + "\n"


_RECIPE_INTRODUCTION = """\
A recipe is a YAML file: a few keys for the whole cascade and a list of stages. `cdm recipe --list` names the packaged
ones, `cdm recipe NAME > mine.yaml` gives one to edit, and `cdm train --set KEY.PATH=VALUE` changes single keys. A key
of a stage, such as `training.batch_size`, applies to the stage that is trained; `stages.sr64.training.batch_size` names
the stage. Unknown keys are refused."""

_FILES_INTRODUCTION = """\
What the commands write is JSON, numpy arrays, PNG and safetensors; nothing is pickled. These files are read back
through the models below, so a key that is missing, unknown or out of range is told by name. None of them is meant to be
edited, except a stage's `sampling` in `cascade.json`."""


def files_page() -> str:
    """The reference of the files that commands write, and of the models that only Python uses, as Markdown."""
    in_recipe = set(reachable(Recipe))
    parts = [f"# Files\n\n{generated_note('the configuration models')}\n\n{_FILES_INTRODUCTION}"]
    shown: set[Model] = set()
    for title, place, root in _FILES:
        parts.append(f"## {title}\n\n{place}.")
        for model, paths in reachable(root).items():
            if model not in in_recipe | shown:
                parts.append(_section(model, paths, level=3))
                shown.add(model)
    parts.append("## Used from Python\n\nArguments of functions; no file of its own.")
    for model in all_models():
        if model not in in_recipe | shown:
            parts.append(_section(model, [], level=3))
    return "\n\n".join(parts) + "\n"


def home(model: Model) -> str:
    """The page that describes a model, under ``reference/``."""
    return "recipes.md" if model in reachable(Recipe) else "files.md"


def _section(model: Model, paths: list[str], *, level: int = 2, settable: bool = False) -> str:
    """A model's heading, text and table. Of a stage's config.json only what the recipe's stage does not have."""
    own = model.model_fields
    words = [inline((model.__doc__ or "").partition("\n\n")[0])]
    if paths and settable:
        words.append("At " + ", ".join(code(path) for path in paths) + ".")
    elif paths:
        words.append("At " + ", ".join(code(path) for path in paths) + " in the file.")
    if model is StageConfig:
        own = {key: field for key, field in own.items() if key not in StageRecipe.model_fields}
        words.append("Beside these it has every key of [a recipe's stage](recipes.md#StageRecipe).")
    rows = [_row(key, field) for key, field in own.items()]
    heading = f"{'#' * level} {model.__name__} {{ #{model.__name__} }}"
    return f"{heading}\n\n{' '.join(words)}\n\n{table(('Key', 'Type and range', 'Default', 'Meaning'), rows)}"


def _row(key: str, field: FieldInfo) -> tuple[str, str, str, str]:
    return code(key), type_words(field.annotation, field.metadata), _default(field), inline(field.description or "")


def type_words(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type and its range in words, such as ``whole number, from 1``, or a link to the model that it is."""
    limits = ", ".join(words for limit in metadata for words in _limit(limit))
    words = _bare_type(annotation)
    if not limits:
        return words
    # The range of a value that may be null is that of the value.
    head, null, _ = words.partition(f" or {code('null')}")
    return f"{head}, {limits}{';' + null if null else ''}"


def _bare_type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return type_words(annotation.__origin__, annotation.__metadata__)
    if origin is Literal:
        return " or ".join(code(json.dumps(value).strip('"')) for value in arguments)
    if origin in (Union, types.UnionType):
        words = [_bare_type(argument) for argument in arguments if argument is not type(None)]
        null = [code("null")] if type(None) in arguments else []
        return " or ".join(dict.fromkeys([*words, *null]))
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {_bare_type(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {', '.join(_bare_type(argument) for argument in arguments)}"
    if origin is dict:
        return f"mapping of {_bare_type(arguments[0])} to {_bare_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return f"[{annotation.__name__}]({home(annotation)}#{annotation.__name__})"
    return _PLAIN.get(annotation, "any value")


def _limit(limit: Any) -> Iterator[str]:
    """The words of one constraint; a Field inside Annotated holds several."""
    match limit:
        case FieldInfo():
            for inner in limit.metadata:
                yield from _limit(inner)
        case annotated_types.Ge():
            yield f"from {limit.ge}"
        case annotated_types.Gt():
            yield f"above {limit.gt}"
        case annotated_types.Le():
            yield f"at most {limit.le}"
        case annotated_types.Lt():
            yield f"below {limit.lt if not isinstance(limit.lt, int) or limit.lt < 2**62 else '2^63'}"
        case annotated_types.MinLen():
            yield "not empty"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, StrictModel):
        return "its own defaults"
    return code(json.dumps(value, ensure_ascii=False).strip('"'))
