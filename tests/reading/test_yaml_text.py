from __future__ import annotations

import time
from typing import Any

import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.yaml_text import parse_yaml


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


def test_aliases_of_aliases_have_an_end() -> None:
    """A few hundred bytes that stand for 10^30 values, as a list and as merged keys."""
    lists = ["l0: &l0 [x]"] + [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 31)]
    keys = ", ".join(f"k{i}: 1" for i in range(10))
    groups = [f"l0: &l0 {{{keys}}}"] + [f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 10)}]}}" for i in range(1, 31)]
    wide = [f"l0: &l0 {{{keys}}}", f"l1: {{<<: [{', '.join(['*l0'] * 2000)}]}}"]
    began = time.process_time()
    assert "more than 100,000 values" in _refusal("\n".join(lists))
    assert "more than 1000 keys are merged here" in _refusal("\n".join(groups))
    assert "line 2: more than 1000 keys are merged here" in _refusal("\n".join(wide))
    assert time.process_time() - began < 30


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
