"""YAML: bombs, tags and other surprises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.yaml_text import MOST_BYTES, parse_yaml

Frugal = Callable[[Callable[[], object]], str]

PLAIN = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_plain_values_are_read(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True), "x") == value


def test_aliases_and_merges_within_reason_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 3}\n"
    assert parse_yaml(text, "x") == {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 1, "y": [1, 2]}, "c": {"x": 3, "y": [1, 2]}}
    assert parse_yaml("", "x") is None
    assert parse_yaml("# nothing", "x") is None


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 900))


@pytest.mark.parametrize(
    "text, words",
    [
        (LAUGHS, "its aliases make more than 20000 values"),
        (MERGES, "its aliases make more than 20000 values"),
        (CHAIN, "32 levels"),
        ("&a [*a]", "an alias inside what it stands for"),
        ("&a {b: *a}", "an alias inside"),
        ("[" * 60_000, "nested deeper than 32"),
        ("- " * 60_000, "nested deeper than 32"),
        ("? " * 30_000, "nested deeper than 32"),
        ("[" + "1," * 20_000 + "1]", "more than 20000 values"),
        ("x" * (MOST_BYTES + 1), "131073 characters"),
        ("!!python/object/apply:os.system ['true']", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("!!int ''", "the tag"),
        ("!!bool x", "the tag"),
        ("!!timestamp x", "the tag"),
        ("!own x", "the tag '!own'"),
        ("a: ! x", "the tag '!'"),
        ("1: x", "the key 1 is not text"),
        ("a: {yes: 1}", "the key True is not text"),
        ("[a]: x", "unhashable key"),
        ('"\\ud800"', "surrogates"),
        ("a: 99999999999999999999999", "77 bits"),
        (":".join(["1"] * 3000) + ".5", "too large"),
        (":".join(["1"] * 3000), "bits"),
        ("a: 2001-02-30", "day is out of range"),
        ("a: [", "but found '<stream end>'"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("\x07", "not allowed"),
        ("=", "could not determine a constructor"),
    ],
)
def test_what_is_refused(frugal: Frugal, text: str, words: str) -> None:
    outcome = frugal(lambda: parse_yaml(text, "recipe: x"))
    assert outcome.startswith("UserError: recipe: x is not valid YAML (")
    assert words in outcome


def test_refusals_are_one_line() -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml("a: [\n\nb: \x1b", "x")
    assert str(caught.value).isprintable()
