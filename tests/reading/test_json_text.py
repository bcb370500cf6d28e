"""JSON: what is refused before other code can stumble over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.json_text import DEPTH, LONGEST_LINE, parse_json, read_json, read_json_lines

Frugal = Callable[[Callable[[], object]], str]

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_holds_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), "x") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8-sig"), "x") == value


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'[{"b": {"a": 1, "c": [], "a": 1}}]', "the key 'a' stands twice"),
        (b"NaN", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"1e999", "1e999 is too large"),
        (b"1" * 5000, "5000 digits"),
        (b"18446744073709551616", "65 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b'"\\ud800"', "surrogates"),
        (b'{"\\udfff": 1}', "surrogates"),
        (b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), "nested deeper than 64"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "nested deeper than 64"),
        (b"[" * 500_000, "nested deeper"),
        (b"\xff", "utf-8"),
        ('"x"'.encode("utf-16"), "utf-8"),
        (b"", "Expecting value"),
        (b"1 2", "Extra data"),
        (b"\0", "Expecting value"),
        (b'"a\nb"', "control character"),
    ],
)
def test_what_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=r"^here: not valid JSON \(") as caught:
        parse_json(content, "here")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_deepest_and_largest_that_is_read() -> None:
    assert parse_json(b"[" * DEPTH + b"]" * DEPTH, "x")
    assert parse_json(b"[18446744073709551615, -9223372036854775808]", "x") == [2**64 - 1, -(2**63)]


@pytest.mark.parametrize("content", [b"[" + b"[]," * 5_000_000 + b"[]]", b"[" + b"{}," * 5_000_000 + b"{}]"])
def test_many_small_values_take_no_memory(tmp_path: Path, frugal: Frugal, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    outcome = frugal(lambda: read_json(tmp_path / "x.json"))
    assert "x.json: not valid JSON (more than 2000000 values)" in outcome


def test_a_file_is_too_large_before_it_is_read(tmp_path: Path, frugal: Frugal) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**40)
    outcome = frugal(lambda: read_json(tmp_path / "x.json"))
    assert "1099511627776 bytes of JSON, at most 16777216 are read" in outcome


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n[2]\n{"half')
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (2, [2])]
    path.write_bytes(b"1\nx\n")
    with pytest.raises(UserError, match=r"x.jsonl: line 2: not valid JSON"):
        list(read_json_lines(path))
    path.write_bytes(b"1\n" + b" " * LONGEST_LINE)
    with pytest.raises(UserError, match=r"x.jsonl: line 2 is longer"):
        list(read_json_lines(path))
