"""YAML: bombs, tags and other surprises; keys given twice, and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.yaml_text import MOST_BYTES, parse_yaml

Frugal = Callable[[Callable[[], object]], str]

# PyYAML writes a text such as 1e-4 without quotes, which people, and so this reader, take for a number.
PLAIN = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=8).filter(
    lambda text: not re.fullmatch(r"[-+]?[0-9._]+[eE][-+]?[0-9]+", text)
)
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


def _refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "recipe: mine.yaml")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("recipe: mine.yaml")
    assert len(line) < 500
    return line


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4),
        ("1E6", 1e6),
        ("-3e+2", -300.0),
        ("2.5e3", 2500.0),
        (".5e1", 5.0),
        ("1_000e3", 1e6),
        ("24_000", 24_000),
        ("1.0e-3", 1e-3),
        ("0.5", 0.5),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1e-4x", "1e-4x"),
        ("base1e4", "base1e4"),
        ("null", None),
        ("[1, 2e1, a]", [1, 20.0, "a"]),
        ("", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    read = parse_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is given a second time (first in line 1)"),
        ("x: {seed: 1, images: 2, seed: 3}", "line 1: 'seed' is given a second time (first in line 1)"),
        ("stages:\n  - name: a\n    training: {images: 1}\n    training: {images: 2}", "line 4: 'training'"),
        ("'a': 1\na: 2", "line 2: 'a'"),
        ("1: a\n1: b", "line 2: '1'"),
        ("a: &b {x: 1}\nc: {<<: *b, <<: *b}", "line 2: '<<'"),
        ("k" * 100 + ": 1\n" + "k" * 100 + ": 2", "line 2: '" + "k" * 60 + "'"),
    ],
)
def test_a_key_given_twice_is_refused_by_name(text: str, words: str) -> None:
    line = _refusal(text)
    assert words in line
    assert line.endswith("each key once")


def test_merged_keys_may_be_given_again() -> None:
    text = "base: &b {images: 1, seed: 2}\nup: &u {<<: *b, seed: 3}\ntop: {<<: [*u, *b], images: 4}"
    assert parse_yaml(text, "x") == {
        "base": {"images": 1, "seed": 2},
        "up": {"images": 1, "seed": 3},
        "top": {"images": 4, "seed": 3},
    }
    # A group that was merged elsewhere before it was read itself.
    nested = "outer: {inner: &i {<<: &j {x: 1}, x: 2}}\nother: {<<: *i}"
    assert parse_yaml(nested, "x") == {"outer": {"inner": {"x": 2}}, "other": {"x": 2}}


def test_an_alias_stands_for_a_copy() -> None:
    value = parse_yaml("a: &s {betas: [1, 2]}\nb: *s", "x")
    value["a"]["betas"].append(3)
    assert value["b"] == {"betas": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "[" * 100_000,
        "a: &x [*x]",
        "&x {a: *x}",
        "a: *nowhere",
        "!!python/object/apply:os.system ['true']",
        "!custom 3",
        "when: 2001-99-99",
        "a: 1" + "0" * 5000,
        "a\tb: \x00",
        "? [a, b]\n: 1",
        "a: 1\n---\nb: 2",
    ],
)
def test_what_is_no_plain_yaml(text: str) -> None:
    assert _refusal(text).startswith("recipe: mine.yaml is not valid YAML (")
