"""Lines for a person, on stderr."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["tell"]


def tell(line: str) -> None:
    """Write a line to stderr. Where that cannot be, on a full disk or a closed pipe, what it tells of goes on."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line}\n")
