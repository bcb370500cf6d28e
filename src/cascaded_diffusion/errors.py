"""The one exception that means: the user can put this right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "did_you_mean", "first_line", "one_line", "printable"]

_LONGEST = 8000


class UserError(ValueError):
    """Wrong input, told in one line: what is wrong, the value given, and what is allowed.

    The command line prints the line and exits with status 2; in Python it is an ordinary ``ValueError``. Whatever a
    stranger's file has put into the line, it stays one line of printable text.
    """

    def __init__(self, line: str) -> None:
        super().__init__(printable(line))


def printable(text: str) -> str:
    """``text`` as one line: line breaks become spaces, other control characters escapes, and its length is limited."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 500]} ... {text[-400:]}"
    if text.isprintable():
        return text
    words = "".join(" " if letter in "\n\r\t\v\f" else letter for letter in text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def one_line(error: BaseException, longest: int | None = None) -> str:
    """All that an error says in one line, cut to ``longest`` letters; its type's name if it says nothing."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says; torch's say a lot."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """``"; did you mean WORD?"`` for the allowed word that is most like it, or nothing if none is."""
    close = difflib.get_close_matches(word[:200], list(allowed), n=1)
    return f"; did you mean {close[0]}?" if close else ""
