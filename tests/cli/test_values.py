"""Values from the command line."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from cascaded_diffusion.cli.values import number_from, per_stage, split_classes, to_number, whole_from
from cascaded_diffusion.errors import UserError


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, None),
        ("0.5", 0.5),
        (" 2 ", 2.0),
        ("base8=1", {"base8": 1.0}),
        ("base8=1,sr16=2e-1", {"base8": 1.0, "sr16": 0.2}),
        ("base8 = 1 , sr16 = 2", {"base8": 1.0, "sr16": 2.0}),
    ],
)
def test_per_stage(text: str | None, expected: Any) -> None:
    assert per_stage("--s", text, to_number("--s")) == expected


def test_commas_belong_to_the_stage_before_them() -> None:
    assert per_stage("--steps", "10,20,30", str) == "10,20,30"
    assert per_stage("--steps", "base32=10,20,30,sr64=5", str) == {"base32": "10,20,30", "sr64": "5"}


@pytest.mark.parametrize("text", ["=1", "a=1,a=2", "1,a=2", "a=1,=2", ",a=1"])
def test_per_stage_refuses(text: str) -> None:
    with pytest.raises(UserError, match=r"^--steps: "):
        per_stage("--steps", text, str)


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-inf", "1,2", "0x1"])
def test_numbers(text: str) -> None:
    assert to_number("--s")("-0.5") == -0.5
    with pytest.raises(UserError, match=r"^--s: .* is not a number$"):
        to_number("--s")(text)
    with pytest.raises(typer.BadParameter):
        number_from(0)(text)


def test_whole_numbers() -> None:
    assert whole_from(1)("12") == 12
    assert whole_from(0)(0) == 0
    assert whole_from(-5)("-3") == -3
    for text in ("0", "-1", "1.0", "1e3", "", "²", "٣", "--1", "1_000", " 1"):
        with pytest.raises(typer.BadParameter, match=r"allowed: whole numbers from 1$"):
            whole_from(1)(text)


def test_numbers_from() -> None:
    assert number_from(0)("0.5") == 0.5
    with pytest.raises(typer.BadParameter, match=r"^'-0.1'; allowed: numbers from 0$"):
        number_from(0)("-0.1")


def test_classes() -> None:
    assert split_classes(None) is None
    assert split_classes("3, Bag") == ["3", "Bag"]
    for text in ("", "1,", ",1", "1,,2"):
        with pytest.raises(UserError, match=r"^--classes: .* has an empty entry"):
            split_classes(text)
