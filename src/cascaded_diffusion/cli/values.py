"""Reading values from the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

import typer

from cascaded_diffusion.errors import UserError

__all__ = [
    "batch_size",
    "batch_sizes",
    "check_compile",
    "check_precision",
    "number_from",
    "per_stage",
    "sampling_choices",
    "split_classes",
    "split_trackers",
    "stage_settings",
    "to_number",
    "whole_from",
]

T = TypeVar("T")


def whole_from(minimum: int) -> Callable[[Any], int]:
    """A typer parser of whole numbers from ``minimum``; unlike typer's own, its complaint tells the value given."""

    def read(value: Any) -> int:
        text = str(value)
        if len(text) > 20 or not text.removeprefix("-").isdecimal() or not text.isascii() or int(text) < minimum:
            raise typer.BadParameter(f"{text[:60]!r}; allowed: whole numbers from {minimum}")
        if int(text) >= 2**63:
            raise typer.BadParameter(f"{text}; allowed: whole numbers from {minimum} to {2**63 - 1}")
        return int(text)

    return read


def number_from(minimum: float) -> Callable[[Any], float]:
    """A typer parser of finite numbers from ``minimum``."""

    def read(value: Any) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= minimum):
            raise typer.BadParameter(f"{str(value)!r}; allowed: numbers from {minimum:g}")
        return number

    return read


def to_number(option: str) -> Callable[[str], float]:
    """A reader of finite numbers for ``option``."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
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


def sampling_choices(
    *,
    steps: str | None,
    sampler: str | None,
    augmentation: str | None,
    s: str | None,
    guidance: str | None,
    more: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What the options of those names ask of the stages, as :meth:`Cascade.sample` takes it."""
    return {
        "steps": per_stage("--steps", steps, str),
        "sampler": per_stage("--sampler", sampler, str),
        "augmentation": per_stage("--augmentation", augmentation, str),
        "s": per_stage("--s", s, to_number("--s")),
        "guidance": per_stage("--guidance", guidance, to_number("--guidance")),
        "more": stage_settings(more) or None,
    }


def stage_settings(settings: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """``STAGE.KEY=VALUE`` words as stage name -> key -> value; values are read as YAML."""
    from cascaded_diffusion.recipes.recipe import parse_overrides

    found: dict[str, dict[str, Any]] = {}
    for path, value in parse_overrides(settings or ()):
        if len(path) != 2:
            raise UserError(f"--set: {'.'.join(path)!r} is not of the form STAGE.KEY=VALUE")
        found.setdefault(path[0], {})[path[1]] = value
    return found


def check_compile(choice: str, *, offload: bool = False) -> Literal["off", "auto", "on"]:
    """What ``--compile`` says; ``UserError`` unless it is a value that there is."""
    if choice not in ("off", "auto", "on"):
        raise UserError(f"--compile: {choice!r} is not known; allowed: off, auto, on")
    if offload and choice != "off":
        raise UserError(f"--compile: {choice} does not go with --offload, which moves the weights; allowed: off")
    return cast('Literal["off", "auto", "on"]', choice)


def check_precision(precision: str | None) -> None:
    """``UserError`` if it is given and none of the three."""
    if precision not in (None, "auto", "fp32", "bf16"):
        raise UserError(f"--precision: {precision!r} is not known; allowed: auto, fp32, bf16")


def split_classes(text: str | None) -> list[str] | None:
    """``3,Bag`` as a list."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(f"--classes: {text!r} has an empty entry; give ids or names separated by commas")
    return words


def split_trackers(text: str | None) -> tuple[str, ...]:
    """``tensorboard,wandb`` as names of trackers that are known and installed."""
    from cascaded_diffusion.training.tracking.base import check_trackers

    return () if text is None else check_trackers(word.strip() for word in text.split(","))


def batch_sizes(text: str) -> Any:
    """``auto`` or a number from 1 for all stages, or ``stage=V,stage=V`` as a dict."""
    return per_stage("--batch-size", text, batch_size)


def batch_size(text: str) -> int | Literal["auto"]:
    """``auto``, or a number from 1."""
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise UserError(f"--batch-size: {text!r} is not allowed; give a number from 1, or auto")
    return int(text)
