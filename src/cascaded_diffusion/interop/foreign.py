"""Reading checkpoints that others made: tensors, and never anything that would run code."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cascaded_diffusion.errors import UserError

__all__ = ["load_foreign_checkpoint"]

_MOST_BYTES = 64 * 2**30
"""More than ten times what the largest published diffusion U-Nets take."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"

_DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
)
"""What torch.load raises on bytes that are no checkpoint; it promises nothing."""


def load_foreign_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a PyTorch checkpoint that is a dict of tensors, by name.

    The file is looked at before it is opened as a checkpoint, and a PyTorch checkpoint is loaded with
    ``weights_only=True``, which builds tensors and plain containers and nothing else. The tensors are on the CPU and
    may share memory with the file.

    Raises:
        UserError: no such file, not a checkpoint, cut short, too large, holding other things than named tensors, or
            numbers that are not finite.
    """
    size = _checked_size(path)
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(_ZIP):
        _check_archive(path, size)
        found = _load_torch(path, mmap=True)
    elif start.startswith(_PICKLE):
        found = _load_torch(path, mmap=False)
    elif path.suffix == ".safetensors" or start[8:9] == b"{":
        found = _load_safetensors(path)
    else:
        raise UserError(f"{path}: neither a PyTorch checkpoint nor a .safetensors file (it begins with {start!r})")
    return _checked_tensors(path, found, size)


def _checked_size(path: Path) -> int:
    if path.is_dir():
        raise UserError(f"{path}: a folder; name the checkpoint file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    size = path.stat().st_size
    if not 16 < size <= _MOST_BYTES:
        raise UserError(f"{path}: {size} bytes are no checkpoint; up to {_MOST_BYTES} are read")
    return size


def _check_archive(path: Path, size: int) -> None:
    """Refuse a zip file that ``torch.save`` did not write: cut short, compressed, or of another kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f"{path}: cut short or damaged ({error})") from None
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "data.pkl" not in names or "constants.pkl" in names:
        raise UserError(f"{path}: a zip file, but not a checkpoint that torch.save wrote")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise UserError(f"{path}: would unpack to more than its {size} bytes; torch.save does not compress")


def _load_torch(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; what comes out is checked
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds other things than tensors, or is damaged; it is not loaded, for that could run code. "
            "Save its state dict alone"
        ) from None
    except _DAMAGE as error:
        raise UserError(f"{path}: cut short or damaged ({_first_line(error)})") from None


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


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
