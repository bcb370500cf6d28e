"""Tensors on their way to disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cascaded_diffusion.files import open_as_usual

__all__ = ["write_tensors"]


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, and wait until it is on disk.

    Raises:
        OSError: the disk is full or fails, in its proper kind; safetensors has one of its own.
    """
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    open_as_usual(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
