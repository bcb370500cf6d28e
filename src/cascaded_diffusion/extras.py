"""Optional packages: imported where they are used, and named with their extra when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from cascaded_diffusion.errors import UserError

__all__ = ["load_extra", "transport_errors"]


def load_extra(package: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: the name it is imported by.
        extra: the extra of this distribution that brings it.
        purpose: what was asked for, as the start of the error's line.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        remedy = f"pip install 'cascaded-diffusion[{extra}]'"
        raise UserError(f"{purpose} needs the package {package} ({error}); {remedy}") from None


def transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub and the packages on top of it raise when the hub cannot be reached or does not answer."""
    errors = importlib.import_module("huggingface_hub.errors")
    # The base of its HTTP errors belongs to the HTTP client, which differs between releases.
    base = next(kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return (base, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
