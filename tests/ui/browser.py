"""A headless Chromium that speaks to nobody but this machine, for tests and for the picture in the docs."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

__all__ = ["find_chromium", "open_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """The browser to use: what CDM_CHROMIUM names, or the first of the usual names that is there."""
    named = os.environ.get("CDM_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def open_browser(chromium: str, **options: Any) -> Iterator[Any]:
    """A browser with a fresh profile; ``options`` are those of Playwright's browser context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=list(_ARGUMENTS), **options
        )
        try:
            yield context
        finally:
            context.close()
