"""Reading checkpoints that others made: tensors, and never anything that would run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.plain import open_file, size_of
from cascaded_diffusion.reading.tensors import read_tensors
from cascaded_diffusion.reading.torch_file import load_foreign_weights

__all__ = ["load_foreign_checkpoint"]

_MOST_BYTES = 64 * 2**30
"""More than ten times what the largest published diffusion U-Nets take."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"


def load_foreign_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a PyTorch checkpoint that is a dict of tensors, by name.

    The file is looked at before it is opened as a checkpoint, and a PyTorch checkpoint is loaded with
    ``weights_only=True``, which builds tensors and plain containers and nothing else. The tensors are on the CPU and
    may share memory with the file.

    Raises:
        UserError: no such file, not a checkpoint, cut short, too large, holding other things than named tensors, or
            numbers that are not finite.
    """
    with open_file(path) as file:
        size, start = size_of(file), file.read(16)
    if not 16 < size <= _MOST_BYTES:
        raise UserError(f"{path}: {size} bytes are no checkpoint; up to {_MOST_BYTES} are read")
    if start.startswith((_ZIP, _PICKLE)):
        found = load_foreign_weights(path, _MOST_BYTES)
    elif path.suffix == ".safetensors" or start[8:9] == b"{":
        found = read_tensors(path)
    else:
        raise UserError(f"{path}: neither a PyTorch checkpoint nor a .safetensors file (it begins with {start!r})")
    return _checked_tensors(path, found, size)


def _checked_tensors(path: Path, found: Any, size: int) -> dict[str, Tensor]:
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: holds {_kind(found)}, not a dict of tensors")
    others = [f"{name!r} ({_kind(value)})" for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise UserError(f"{path}: not a dict of tensors: {', '.join(others[:5])}{more}; save the state dict alone")
    for name, value in found.items():
        _check_tensor(path, name, value, size)
    return found


def _check_tensor(path: Path, name: Any, value: Tensor, size: int) -> None:
    if not isinstance(name, str):
        raise UserError(f"{path}: {name!r} is not the name of a tensor")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise UserError(f"{path}: {name} is not a plain tensor of numbers")
    # A view may claim more numbers than its storage holds.
    if value.numel() * value.element_size() > size:
        raise UserError(f"{path}: {name} has shape {list(value.shape)}, more than the file's {size} bytes hold")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise UserError(f"{path}: {name} holds numbers that are not finite; these weights cannot be used")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (" that is empty" if isinstance(value, dict) and not value else "")
