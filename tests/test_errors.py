"""An error is one line of printable text, whatever a stranger's file has put into it."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascaded_diffusion.errors import UserError, printable


@given(st.text(st.characters(codec=None)))
def test_every_text_becomes_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert str(UserError(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text


@pytest.mark.parametrize(
    "text, line",
    [
        ("plain Bücher  two spaces", "plain Bücher  two spaces"),
        ("a\nb\tc\r", "a b c "),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("caf\udce9", "caf\\udce9"),
        ("\u202eevil", "\\u202eevil"),
    ],
)
def test_what_becomes_of_control_characters(text: str, line: str) -> None:
    assert printable(text) == line


def test_a_long_line_is_shortened_in_the_middle() -> None:
    line = printable("begin" + "x" * 10**7 + "end")
    assert len(line) < 10_000
    assert line.startswith("begin")
    assert line.endswith("end")


def test_it_travels_between_processes() -> None:
    assert str(pickle.loads(pickle.dumps(UserError("a\nb")))) == "a b"
