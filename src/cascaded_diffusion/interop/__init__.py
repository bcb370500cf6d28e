"""Reading what other projects wrote, and writing what they read. The names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cascaded_diffusion.interop.diffusers_folder import export_diffusers as export_diffusers
    from cascaded_diffusion.interop.diffusers_folder import import_diffusers as import_diffusers
    from cascaded_diffusion.interop.diffusers_folder import load_diffusers_unet as load_diffusers_unet
    from cascaded_diffusion.interop.guided_diffusion import load_guided_diffusion as load_guided_diffusion
    from cascaded_diffusion.interop.guided_stage import import_guided_diffusion as import_guided_diffusion

_HOMES = {
    "export_diffusers": "diffusers_folder",
    "import_diffusers": "diffusers_folder",
    "import_guided_diffusion": "guided_stage",
    "load_diffusers_unet": "diffusers_folder",
    "load_guided_diffusion": "guided_diffusion",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list of strings


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
