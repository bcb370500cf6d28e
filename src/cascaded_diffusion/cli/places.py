"""Names that a person gives: packaged ones, and places to write to."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cascaded_diffusion.cli.once import is_ours_to_tell
from cascaded_diffusion.errors import UserError

if TYPE_CHECKING:
    import torch

    from cascaded_diffusion.data.prepared import PreparedData
    from cascaded_diffusion.evaluation.features import Extractor

__all__ = ["check_place", "open_features", "tell_which"]


def tell_which(kind: str, name: str, packaged: Collection[str]) -> None:
    """Say on stderr that a packaged ``kind`` wins over a file or folder of the same name, if there is one."""
    if name in packaged and Path(name).exists():
        line = f"{name}: the packaged {kind} is used, not what has this name here (write ./{name} for that)"
        if is_ours_to_tell(line):
            typer.echo(line, err=True)


def open_features(name: str | None, data: PreparedData, device: torch.device) -> Extractor:
    """The feature network of that name, or the one that fits the data; a packaged one wins and says so."""
    from cascaded_diffusion.evaluation.features import PACKAGED, default_extractor, load_extractor

    if name is None:
        name = default_extractor(data.channels, data.class_names, data.resolutions[-1])
    tell_which("feature network", name, PACKAGED)
    return load_extractor(name, device=device)


def check_place(option: str, path: Path) -> None:
    """Find out before the work, not after it, that ``path`` cannot be written.

    Raises:
        UserError: something on the way to it is a file, or nothing may be written to the nearest folder that exists.
    """
    folder = path.absolute()
    if not folder.is_dir():
        folder = next(above for above in folder.parents if above.exists())
    if not folder.is_dir():
        raise UserError(f"{option}: {path} cannot be made, for {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option}: {path} cannot be made, for nothing may be written to {folder}")
