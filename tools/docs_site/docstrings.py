"""A griffe extension: the package's docstrings as Markdown that mkdocstrings can set."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Docstrings", "as_markdown"]

_ROLE = re.compile(r":(?:class|meth|func|mod|attr|data):`~?([^`]+)`")
_SEVERAL = re.compile(r"^( {4})((?:\*{0,2}\w+, )+\*{0,2}\w+): (.*)$")


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Roles become code, and arguments described together, ``a, b: text``, become one entry each."""
    text = _ROLE.sub(lambda match: f"`{match[1]}`", text)
    lines: list[str] = []
    pending: list[str] = []
    for line in text.splitlines():
        match = _SEVERAL.match(line)
        continues = line.startswith(" " * 5) and bool(pending)
        if not continues:
            lines += _repeated(pending)
            pending = []
        if match is not None or continues:
            pending.append(line)
        else:
            lines.append(line)
    return "\n".join(lines + _repeated(pending))


def _repeated(entry: list[str]) -> list[str]:
    """One entry of several names as several entries of one name with the same text."""
    if not entry:
        return []
    match = _SEVERAL.match(entry[0])
    assert match is not None  # only such a line begins an entry
    return [line for name in match[2].split(", ") for line in (f"{match[1]}{name}: {match[3]}", *entry[1:])]
