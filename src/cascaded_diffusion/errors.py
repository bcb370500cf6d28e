"""The one exception that means: the user can put this right."""

from __future__ import annotations

__all__ = ["UserError", "printable"]

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
