"""Made-up and mutated values: trees of JSON and YAML, numbers and words that code stumbles over."""

from __future__ import annotations

import json
from random import Random
from typing import Any

__all__ = ["INTEGERS", "json_text", "made_up", "mutated", "yaml_text"]

INTEGERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 4095, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63)
_INTEGERS = (*INTEGERS, -(2**63), 2**64, 10**30, 10**400)
_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e-30, 1e30, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    "", " ", "null", "true", "nan", "-1", "1e999", "base8", "sr16", "..", "../../etc/passwd", "/etc/passwd", "a/b",
    "C:\\x", "\0", "a\nb", "\x1b[31mred", "\ud800", "ü", "\u202e", "𝔘", "%s%n", "{0}", "${x}", "<script>",
    "x" * 300, "0" * 64, "f" * 64, "model.safetensors", "config.json", "ddim5", "10,20", "from-data", "gaussian",
    "truncated", "cosine", "linear",
)  # fmt: skip


def made_up(rng: Random, depth: int = 3) -> Any:
    """A value of any kind."""
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(_INTEGERS)
    if kind == 3:
        return rng.choice(_FLOATS)
    if kind in (4, 5):
        return rng.choice(_WORDS)
    if kind == 6:
        return [made_up(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(_WORDS): made_up(rng, depth - 1) for _ in range(rng.randrange(4))}
    return _nested(rng)


def _nested(rng: Random) -> Any:
    value: Any = rng.choice(_WORDS)
    for _ in range(rng.choice((5, 40, 70, 300))):
        value = [value] if rng.randrange(2) else {"a": value}
    return value


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        _places(value[key], found)
    return found


def mutated(rng: Random, value: Any) -> Any:
    """A copy of a tree with one to three changes: a value replaced, nudged, dropped, doubled, or put elsewhere."""
    tree = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(tree, [])
        if not places:
            return made_up(rng)
        where, key = places[rng.randrange(len(places))]
        _change(rng, places, where, key)
    return made_up(rng) if rng.randrange(40) == 0 else tree


def _change(rng: Random, places: list[tuple[Any, Any]], where: Any, key: Any) -> None:
    kind = rng.randrange(8)
    old = where[key]
    if kind <= 2:
        where[key] = made_up(rng)
    elif kind == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        where[key] = rng.choice(
            (old + 1, old - 1, -old, old * 1000, old * 0.3 if abs(old) < 1e300 else 0, str(old), [old])
        )
    elif kind == 4:
        del where[key]
    elif kind == 5:
        other, place = places[rng.randrange(len(places))]
        where[key] = json.loads(json.dumps(other[place] if place in other or isinstance(place, int) else None))
    elif kind == 6 and isinstance(where, dict):
        where[rng.choice((*_WORDS, str(key) + "x", str(key)[1:]))] = old
    elif isinstance(where, list):
        where.insert(rng.randrange(len(where) + 1), old)
    elif isinstance(old, str) and old:
        at = rng.randrange(len(old))
        where[key] = old[:at] + rng.choice(("", "\0", "/", "é", "9", old)) + old[at + 1 :]
    else:
        where[key] = [old] * rng.choice((0, 2, 50))


def json_text(rng: Random, value: Any) -> bytes:
    """A tree as JSON text, now and then with a key that stands twice, or in another encoding."""
    text = json.dumps(value, ensure_ascii=bool(rng.randrange(2)), indent=rng.choice((None, 2)))
    if rng.randrange(12) == 0 and "{" in text:
        at = text.index("{", rng.randrange(text.rindex("{") + 1)) + 1
        text = f'{text[:at]}"a": 1, "a": {rng.choice(("1", "[]", "1e999", "9" * 5000, "NaN"))}, {text[at:]}'
    encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


_YAML_PIECES = (
    "&a ", "*a", "!!python/object/apply:os.system ['true']", "!!int 'x'", "!!float ''", "!!bool x", "!!binary '%'",
    "!!timestamp x", "!!set {a, b}", "!!omap [a: 1]", "<<: *a", "<<: [*a, *a]", "? [1, 2]\n: 3", "- ", "{", "}",
    "[", "]", ": ", "#", "|\n  x", ">-\n", "---\n", "...\n", "%YAML 9.9\n", "2001-02-30", "1:99:99:99:99", "0x",
    "1e999", ".inf", ".nan", "0o99", "'", '"', '"\\ud800"', "\t", "=", "~", "yes", "@", "`", "\x00", "\x85",
    "\ufeff", "a: &b {c: *b}",
)  # fmt: skip


def yaml_text(rng: Random, text: str) -> bytes:
    """YAML text with pieces of its grammar put where they do or do not belong, and lines moved, doubled or lost."""
    if rng.randrange(12) == 0:
        return _bomb(rng).encode()
    lines = text.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            del lines[at : at + rng.randrange(1, 4)]
            lines = lines or ["\n"]
        elif kind == 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        elif kind == 2:
            lines[at] = rng.choice(("  ", "    ", "\t", "- ")) + lines[at]
        elif kind == 3 and ":" in lines[at]:
            value = made_up(rng, 1)
            shown = json.dumps(value) if rng.randrange(2) else str(value)
            lines[at] = f"{lines[at].partition(':')[0]}: {shown}\n"
        else:
            column = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + rng.choice(_YAML_PIECES) + lines[at][column:]
    return "".join(lines).encode("utf-8", "surrogatepass")


def _bomb(rng: Random) -> str:
    """Aliases of aliases, merges of merges, or brackets in brackets."""
    kind, deep, wide = rng.randrange(4), rng.choice((3, 9, 30, 200)), rng.choice((2, 9))
    if kind == 0:
        return rng.choice(("[", "{a: ", "- ", "? ", "!!x [")) * rng.choice((40, 400, 5000))
    if kind == 1:
        return "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * wide)}]\n" for i in range(1, deep))
    if kind == 2:
        links = (f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * wide)}], k{i}: 1}}\n" for i in range(1, deep))
        return "a0: &a0 {x: 1}\n" + "".join(links)
    return "name: " + ":".join(["59"] * rng.choice((3, 200, 2000))) + rng.choice(("", ".5"))
