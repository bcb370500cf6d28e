"""The base of every configuration class, and how its errors are told."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["StrictModel", "explain"]


_LONGEST_VALUE = 200


class StrictModel(BaseModel):
    """A frozen configuration: unknown keys are refused, so a misspelt option never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, value: Any) -> Any:
        allowed = sorted(cls.model_fields)
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                close = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                words = f"unknown key; {hint}allowed: {', '.join(allowed)}"
                raise PydanticCustomError("unknown_key", "{words}", {"words": words, "key": str(key)})
        return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def explain(error: ValidationError) -> str:
    """The first problem of a validation error in one line: the key's path, what is wrong, and the value given."""
    first = error.errors(include_url=False)[0]
    unknown = [first["ctx"]["key"]] if first["type"] == "unknown_key" else []
    path = ".".join(str(part) for part in (*first["loc"], *unknown)) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    own_words = message.startswith(f"{path.rpartition('.')[2]}: ")
    if own_words:  # the validator has named the key and the value itself
        message = message.partition(": ")[2]
    shown = "" if own_words or isinstance(given, dict | list) else f" (given: {_short(given)})"
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{path}: {message}{shown}{more}"
