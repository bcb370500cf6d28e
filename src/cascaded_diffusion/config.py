"""The base of every configuration class, how its errors are told, and the kinds of text that its fields hold."""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from cascaded_diffusion.errors import UserError, did_you_mean

__all__ = ["ClassNames", "Facts", "Hashes", "Name", "StrictModel", "Words", "explain", "shorten"]

Name = Annotated[str, Field(min_length=1, max_length=200)]
"""A few words, such as a stage's name or a point's label."""
Words = Annotated[str, Field(max_length=10_000)]
"""A sentence or two, such as a rule that was followed."""
ClassNames = Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=1_000_000)]
"""Class i's name at place i."""
Hashes = Annotated[dict[Name, Annotated[str, Field(max_length=200)]], Field(max_length=10_000)]
"""File or stage to a hash."""
Facts = Annotated[dict[Name, Any], Field(max_length=1000)]
"""A record of where something comes from, whatever its writer knew."""

_MOST_PROBLEMS = 100
"""Looked at, of a file that may have a hundred thousand."""


class StrictModel(BaseModel):
    """A frozen configuration: unknown keys are refused, so a misspelt option never passes silently.

    Every field has a description, every number a range, every text and collection a greatest length: what is absurd is
    refused before memory is taken for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: Any) -> Any:
        """Refuse unknown keys, and collections that are too long before anything in them is looked at."""
        allowed = sorted(cls.model_fields)
        for key, given in value.items() if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                hint = did_you_mean(str(key), allowed)
                raise _key_problem(
                    shorten(key, quoted=False), f"unknown key{hint or ';'} allowed: {', '.join(allowed)}"
                )
            if _holds_truth(given) and _kinds(cls.model_fields[key].annotation) in ({int}, {float}, {int, float}):
                raise _key_problem(key, f"{shorten(given)} is yes or no; a number is allowed")
            if isinstance(given, list | tuple | dict):
                lengths = [getattr(rule, "max_length", None) for rule in cls.model_fields[key].metadata]
                most = next((length for length in lengths if length is not None), len(given))
                if len(given) > most:
                    raise _key_problem(key, f"{len(given):,} entries; at most {most:,} are allowed")
        return value

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """One of what a person has asked for; ``UserError`` names the key that is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise UserError(explain(error)) from None


def _holds_truth(value: Any) -> bool:
    """Whether a value, or an entry of a list, is true or false: pydantic takes these for the numbers 1 and 0."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(v, bool) for v in value))


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that may stand somewhere in a field of this type."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))} & {int, float, bool, Any}


def _key_problem(key: str, words: str) -> PydanticCustomError:
    return PydanticCustomError("key", "{words}", {"words": words, "key": key})


def explain(error: ValidationError, whole: Any = None, *, within: str = "") -> str:
    """The first problem of a validation error in one line: the key's path, what is wrong, and the value given.

    Args:
        error: what pydantic found.
        whole: what was validated. The path then has a stage's name in place of its number.
        within: path of the key that holds the whole, such as ``stages.sr32``.
    """
    problems: dict[tuple[Any, ...], list[ErrorDetails]] = {}
    for found in error.errors(include_url=False)[:_MOST_PROBLEMS]:
        own = [found["ctx"]["key"]] if found["type"] == "key" else []
        problems.setdefault((*_keys(found["loc"]), *own), []).append(found)
    first = next(iter(problems))
    # The alternatives of one key, and a list with its entry, are one problem; what came furthest says most.
    related = [keys for keys in problems if keys[: len(first)] == first or first[: len(keys)] == keys]
    chosen = max(related, key=len)
    path, message = _told(chosen, problems[chosen], whole, within)
    others = [keys for keys in problems if keys not in related]
    apart = [keys for keys in others if not any(keys != up and keys[: len(up)] == up for up in others)]
    count = "many" if error.error_count() > _MOST_PROBLEMS else str(len(apart))
    more = f"; and {count} more" if apart else ""
    return f"{path}: {message}{more}"


def _told(keys: tuple[Any, ...], found: list[ErrorDetails], whole: Any, within: str) -> tuple[str, str]:
    """Path and words of one problem."""
    path = [*([within] if within else []), *_named(keys, whole)]
    message = "; or ".join(dict.fromkeys(detail["msg"].removeprefix("Value error, ") for detail in found))
    kind, given = found[0]["type"], found[0]["input"]
    own = re.match(r"([a-z_][\w.]*): ", message) if kind == "value_error" else None
    if own:  # the validator has named the key and the value itself
        if [own[1]] != path[-1:]:
            path.append(own[1])
        message = message[own.end() :]
    tells_itself = own or kind in ("missing", "key")
    if tells_itself or (kind == "value_error" and isinstance(given, dict | list | tuple)):
        return ".".join(path) or "the file", message
    return ".".join(path) or "the file", f"{message} (given: {shorten(given)})"


def _keys(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A problem's place without pydantic's names for the alternatives of a key, such as ``constrained-int``."""
    kinds = ("int", "float", "str", "bool", "none")

    def is_kind(part: int | str) -> bool:
        return isinstance(part, str) and (part in kinds or "[" in part or part.startswith("constrained-"))

    return tuple(part for part in location if not is_kind(part))


def _named(keys: tuple[Any, ...], whole: Any) -> list[str]:
    """The keys as words; a stage in a list goes by its name."""
    words = []
    for key in keys:
        inner = None
        if isinstance(whole, dict):
            inner = whole.get(key)
        elif isinstance(whole, list | tuple) and isinstance(key, int) and key < len(whole):
            inner = whole[key]
            names = [entry.get("name") for entry in whole if isinstance(entry, dict)]
            name = inner.get("name") if isinstance(inner, dict) else None
            if isinstance(name, str) and re.fullmatch(r"(base|sr)[1-9]\d{0,3}", name) and names.count(name) == 1:
                key = name
        words.append(str(key))
        whole = inner
    return words


class _Shortly(reprlib.Repr):
    """``repr`` in a few words, of numbers too: Python refuses to write out very long ones."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlist = self.maxtuple = self.maxdict = 6
        self.maxlevel = 2

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**30:
            return repr(x)
        return f"about {'-' if x < 0 else ''}10^{round(x.bit_length() * 0.30103)}"


def shorten(value: Any, *, quoted: bool = True) -> str:
    """``repr`` of a value, or the words themselves, in at most about a hundred characters."""
    if isinstance(value, str) and not quoted:
        return value if len(value) <= 60 else f"{value[:28]}...{value[-28:]}"
    return _Shortly().repr(value)
