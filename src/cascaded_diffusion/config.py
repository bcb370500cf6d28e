"""The base of every configuration class, and how its errors are told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["StrictModel", "explain"]


class StrictModel(BaseModel):
    """A frozen configuration: unknown keys are refused, so a misspelt option never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def explain(error: ValidationError) -> str:
    """The first problem of a validation error in one line: the key's path, what is wrong, and the value given."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"]) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    own_words = message.startswith(f"{path.rpartition('.')[2]}: ")
    if own_words:  # the validator has named the key and the value itself
        message = message.partition(": ")[2]
    shown = "" if own_words or isinstance(given, dict | list) else f" (given: {given!r})"
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{path}: {message}{shown}{more}"
