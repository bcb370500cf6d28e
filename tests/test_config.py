"""Configurations: strict, frozen, and with errors that fit on a line."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError, field_validator

import cascaded_diffusion
from cascaded_diffusion.config import StrictModel, explain, shorten
from cascaded_diffusion.errors import UserError


class Inner(StrictModel):
    width: int = Field(default=4, ge=1, le=100, description="Width.")


class Named(StrictModel):
    name: str = Field(description="Name.")
    inner: Inner = Field(default=Inner(), description="Inner.")

    @field_validator("inner")
    @classmethod
    def _check(cls, inner: Inner) -> Inner:
        if inner.width == 13:
            raise ValueError("width: 13 is not allowed")
        return inner


class Outer(StrictModel):
    rate: float = Field(default=0.1, gt=0, description="Rate.")
    inner: Inner = Field(default=Inner(), description="Inner.")
    many: tuple[Inner, ...] = Field(default=(), description="More.")
    stages: tuple[Named, ...] = Field(default=(), description="Named.")
    either: Annotated[int, Field(ge=1, le=9)] | tuple[Annotated[int, Field(ge=1)], ...] | Literal["auto"] = Field(
        default="auto", description="One of three kinds."
    )

    @field_validator("rate")
    @classmethod
    def _check(cls, rate: float) -> float:
        if rate == 7:
            raise ValueError("rate: 7 is not allowed")
        return rate


def _explained(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    line = explain(caught.value, values)
    assert "\n" not in line
    assert len(line) < 600
    return line


def test_unknown_keys_are_refused_and_named() -> None:
    assert _explained(rte=0.2) == "rte: unknown key; did you mean rate? allowed: either, inner, many, rate, stages"
    assert _explained(many=[{"width": 2}, {"x": 1}]) == "many.1.x: unknown key; allowed: width"


def test_yes_and_no_are_no_numbers() -> None:
    assert _explained(rate=True) == "rate: True is yes or no; a number is allowed"
    assert _explained(inner={"width": False}) == "inner.width: False is yes or no; a number is allowed"


def test_the_path_and_the_value_are_told() -> None:
    assert _explained(inner={"width": 0}).startswith("inner.width: Input should be greater than or equal to 1")
    assert "(given: 0)" in _explained(inner={"width": 0})
    assert _explained(many=[{"width": 2}, {"width": "x"}]).startswith("many.1.width: ")


def test_validators_own_words_are_not_doubled() -> None:
    assert _explained(rate=7) == "rate: 7 is not allowed"


def test_further_problems_are_counted() -> None:
    assert _explained(rate=-1, inner={"width": 0}).endswith("; and 1 more")


def test_a_wrong_whole_is_told_too() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate([1])
    assert explain(caught.value).startswith("the file: ")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinity_and_nan_are_refused(value: float) -> None:
    assert "finite" in _explained(rate=value)


def test_configurations_are_frozen_and_go_through_json() -> None:
    config = Outer(rate=0.5, many=(Inner(width=3),))
    with pytest.raises(ValidationError, match="frozen"):
        config.rate = 0.2  # type: ignore[misc]
    assert Outer.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_a_stage_in_a_list_goes_by_its_name() -> None:
    stages = [{"name": "base8"}, {"name": "sr16", "inner": {"width": 0}}]
    assert _explained(stages=stages).startswith("stages.sr16.inner.width: ")
    assert _explained(stages=[{"name": "sr16", "inner": {"width": 13}}]) == "stages.sr16.inner.width: 13 is not allowed"
    assert _explained(stages=[{"name": "sr16", "x": 1}]).startswith("stages.sr16.x: unknown key")


@pytest.mark.parametrize(
    "stages",
    [
        [{"name": "sr16"}, {"name": "sr16", "x": 1}],  # two of that name: the number tells them apart
        [{"name": "base8"}, {"name": ["sr16"], "x": 1}],
        [{"name": "base8"}, {"name": "a\nb", "x": 1}],
        [{"name": "base8"}, {"x": 1}],
    ],
)
def test_a_stage_without_a_name_of_its_own_goes_by_its_place(stages: list[dict[str, Any]]) -> None:
    assert _explained(stages=stages).startswith("stages.1.x: unknown key")


def test_the_path_of_what_holds_the_whole() -> None:
    with pytest.raises(ValidationError) as caught:
        Inner.model_validate({"width": 0})
    assert explain(caught.value, within="stages.sr16").startswith("stages.sr16.width: ")


def test_the_kinds_of_one_key_are_one_problem() -> None:
    line = _explained(either="many")
    assert line.startswith("either: Input should be a valid integer")
    assert "; or Input should be 'auto' (given: 'many')" in line
    assert "more" not in line
    assert _explained(either=[3, 0]).startswith("either.1: Input should be greater than or equal to 1 (given: 0)")
    assert _explained(either=[0], rate=-1).endswith("; and 1 more")


@pytest.mark.parametrize(
    "value, words",
    [
        ("x" * 10**6, "..."),
        (list(range(10**5)), "[0, 1, 2, 3, 4, 5, ...]"),
        ({str(i): i for i in range(10**5)}, "..."),
        (10**5000, "about 10^5000"),
        (-(16**1000), "about -10^1204"),
        ([10**5000], "[about 10^5000]"),
        ({"a": {"b": {"c": {"d": 1}}}}, "{...}"),
    ],
    ids=["text", "list", "group", "number", "negative number", "number in a list", "depth"],
)
def test_a_value_of_any_size_is_told_in_a_few_words(value: Any, words: str) -> None:
    assert words in shorten(value)
    assert len(shorten(value)) < 120
    assert len(_explained(inner={"width": value})) < 300
    assert len(_explained(**{"k" * 10**6: 1})) < 300


def test_what_a_person_has_asked_for() -> None:
    assert Inner.checked(width=3) == Inner(width=3)
    with pytest.raises(UserError, match="width: Input should be greater than or equal to 1"):
        Inner.checked(width=0)


# -- every class of the package ---------------------------------------------------------------------------------------


def _models() -> list[type[StrictModel]]:
    for module in pkgutil.walk_packages(cascaded_diffusion.__path__, "cascaded_diffusion."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)

    def below(model: type[StrictModel]) -> Iterator[type[StrictModel]]:
        for inner in model.__subclasses__():
            yield inner
            yield from below(inner)

    found = {model for model in below(StrictModel) if model.__module__.startswith("cascaded_diffusion.")}
    return sorted(found, key=lambda model: (model.__module__, model.__name__))


def _without_range(schema: dict[str, Any], path: str) -> Iterator[str]:
    """What a JSON schema leaves open: numbers without both ends, texts and collections of any length, any type."""
    kind = schema.get("type")
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for inner in schema.get(key, []):
            yield from _without_range(inner, path)
    fixed = {"const", "enum"} & schema.keys()
    if kind in ("integer", "number") and not fixed:
        for end in ("inimum", "aximum"):
            if not any(key.endswith(end) for key in schema):
                yield f"{path}: a number without {'a least' if end == 'inimum' else 'a greatest'} value"
    if kind == "string" and not fixed and not {"maxLength", "pattern"} & schema.keys():
        yield f"{path}: text of any length"
    if kind == "array" and "maxItems" not in schema:
        yield f"{path}: a list of any length"
    if kind == "object" and "maxProperties" not in schema:
        yield f"{path}: a group of any size"
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from _without_range(inner, path)
    if not {"type", "anyOf", "oneOf", "allOf", "$ref", *fixed} & schema.keys():
        yield f"{path}: of any type"


def test_every_field_is_described_typed_and_ranged() -> None:
    models = _models()
    assert len(models) >= 20
    wrong = []
    for model in models:
        properties = model.model_json_schema()["properties"]
        for name, field in model.model_fields.items():
            path = f"{model.__name__}.{name}"
            if not field.description:
                wrong.append(f"{path}: no description")
            wrong += _without_range(properties[name], path)
    assert wrong == []


@pytest.mark.parametrize(
    "field, words",
    [
        (Annotated[int, Field(ge=1)], "greatest"),
        (Annotated[float, Field(lt=1)], "least"),
        (Annotated[tuple[Annotated[int, Field(ge=0, le=1)], ...], Field(min_length=1)], "list of any length"),
        (tuple[float, float], "number without"),
        (dict[str, int], "group of any size"),
        (str | None, "text of any length"),
        (list[Any], "of any length"),
        (Any, "of any type"),
    ],
)
def test_the_check_finds_what_is_left_open(field: Any, words: str) -> None:
    assert any(words in line for line in _without_range(TypeAdapter(field).json_schema(), "x"))


ABSURD: list[Any] = [10**30, -(10**30), 1e300, "x" * 1_000_001, [[1]] * 4, {"a" * 1_000_001: 1}]


def test_absurd_values_are_refused_whatever_the_schema_says() -> None:
    taken = []
    for model in _models():
        for name, field in model.model_fields.items():
            known = TypeAdapter(Annotated[field.annotation, field])
            for value in ABSURD:
                try:
                    known.validate_python(value)
                except ValidationError:
                    continue
                taken.append(f"{model.__name__}.{name} takes {shorten(value)}")
    assert taken == []
