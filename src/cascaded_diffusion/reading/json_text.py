"""JSON from strangers: bounded in size and depth, each key once, finite numbers of 64 bits, valid text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.plain import read_bytes, read_lines

__all__ = ["check_values", "parse_json", "read_json", "read_json_lines"]

DEPTH = 64
MOST_BYTES = 16 * 2**20
LONGEST_LINE = 2**20
_MOST_VALUES = 2_000_000
_MOST_DIGITS = 20


def read_json(path: Path, *, limit: int = MOST_BYTES) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Raises:
        UserError: the file is missing, unreadable or larger, or see :func:`parse_json`.
    """
    return parse_json(read_bytes(path, limit, what="bytes of JSON"), str(path))


def parse_json(content: bytes, name: str) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        UserError: naming ``name``: not JSON, nested deeper than 64, more than two million values, a key that stands
            twice in an object, a number that is not finite or needs more than 64 bits, or half a surrogate pair.
    """
    try:
        # A list in a list takes two bytes here and sixty in memory.
        if sum(map(content.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values")
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
        check_values(value)
    except RecursionError:
        raise UserError(f"{name}: not valid JSON (nested deeper than {DEPTH})") from None
    except ValueError as error:
        raise UserError(f"{name}: not valid JSON ({error})") from None
    return value


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of every line of a file that holds one JSON text a line, from 1.

    A last line without an end is passed over: a process that goes on is writing it.

    Raises:
        UserError: naming the line that is longer than a megabyte or not JSON.
    """
    for number, line in enumerate(read_lines(path, LONGEST_LINE), 1):
        if len(line) == LONGEST_LINE:
            raise UserError(f"{path}: line {number} is longer than {LONGEST_LINE - 1} bytes")
        if line.endswith(b"\n"):
            yield number, parse_json(line, f"{path}: line {number}")


def check_values(value: Any, depth: int = DEPTH) -> None:
    """``ValueError`` for what no file needs and other code stumbles over: see :func:`parse_json`."""
    pending = [(value, depth)]
    while pending:
        inner, left = pending.pop()
        if isinstance(inner, dict | list):
            if left == 0:
                raise ValueError(f"nested deeper than {depth}")
            if isinstance(inner, dict):
                pending.extend((key, 0) for key in inner)
            pending.extend((part, left - 1) for part in (inner.values() if isinstance(inner, dict) else inner))
        elif isinstance(inner, str) and not inner.isascii():
            inner.encode()  # half of a surrogate pair cannot be written anywhere: UnicodeEncodeError is a ValueError
        elif isinstance(inner, int) and not -(2**63) <= inner < 2**64:
            raise ValueError(f"a whole number of {inner.bit_length()} bits, at most 64 are read")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} stands twice in one object")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # Python's own limit of 4300 has another exception's words
        raise ValueError(f"a whole number of {len(text)} digits, at most {_MOST_DIGITS} are read")
    return int(text)
