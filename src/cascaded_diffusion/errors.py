"""The one exception that means: the user can put this right."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """Wrong input, told in one line: what is wrong, the value given, and what is allowed.

    The command line prints the line and exits with status 2; in Python it is an ordinary ``ValueError``.
    """
