"""Where a user's cache is: what can be made again, and is kept so that it need not be."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$CASCADED_DIFFUSION_CACHE``, or ``cascaded-diffusion`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("CASCADED_DIFFUSION_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    base = Path(shared) if os.path.isabs(shared) else Path(os.path.expanduser("~")) / ".cache"
    return base / "cascaded-diffusion"
