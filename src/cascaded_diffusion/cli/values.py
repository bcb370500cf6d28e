"""Reading values from the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from cascaded_diffusion.errors import UserError

__all__ = ["per_stage", "split_classes", "to_number"]

T = TypeVar("T")


def to_number(option: str) -> Callable[[str], float]:
    """A reader of finite numbers for ``option``."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if number != number or number in (float("inf"), float("-inf")):
            raise UserError(f"{option}: {text!r} is not a number")
        return number

    return read


def per_stage(option: str, text: str | None, read: Callable[[str], T]) -> Any:
    """``V`` or ``stage=V,stage=V`` as a value or a dict; ``None`` stays ``None``.

    A word without ``=`` after a ``stage=`` belongs to that stage, so that ``base32=10,20,30,sr64=5`` reads as meant.
    """
    if text is None:
        return None
    if "=" not in text:
        return read(text.strip())
    values: dict[str, str] = {}
    name = ""
    for word in text.split(","):
        stage, equals, value = word.partition("=")
        if equals:
            name = stage.strip()
            if not name or name in values:
                raise UserError(f"{option}: {text!r} is not stage=value,stage=value with each stage once")
            values[name] = value.strip()
        elif name:
            values[name] += f",{word.strip()}"
        else:
            raise UserError(f"{option}: {text!r} mixes one value for all stages with values for single stages")
    return {stage: read(value) for stage, value in values.items()}


def split_classes(text: str | None) -> list[str] | None:
    """``3,Bag`` as a list."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(f"--classes: {text!r} has an empty entry; give ids or names separated by commas")
    return words
