"""Configurations: strict, frozen, and with errors that fit on a line."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import Field, ValidationError, field_validator

from cascaded_diffusion.config import StrictModel, explain


class Inner(StrictModel):
    width: int = Field(default=4, ge=1, description="Width.")


class Outer(StrictModel):
    rate: float = Field(default=0.1, gt=0, description="Rate.")
    inner: Inner = Field(default=Inner(), description="Inner.")
    many: tuple[Inner, ...] = Field(default=(), description="More.")

    @field_validator("rate")
    @classmethod
    def _check(cls, rate: float) -> float:
        if rate == 7:
            raise ValueError("rate: 7 is not allowed")
        return rate


def _explained(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    line = explain(caught.value)
    assert "\n" not in line
    return line


def test_unknown_keys_are_refused_and_named() -> None:
    assert _explained(rte=0.2) == "rte: unknown key; did you mean rate? allowed: inner, many, rate"
    assert _explained(many=[{"width": 2}, {"x": 1}]) == "many.1.x: unknown key; allowed: width"


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
