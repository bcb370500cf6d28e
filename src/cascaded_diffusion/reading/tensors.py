"""safetensors files, whose header is checked, and compared with the network, before a tensor is read.

The format: https://github.com/huggingface/safetensors#format. The library checks the header too; here it is also
bounded, may name nothing twice, and must hold what the network takes before memory is taken for either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.json_text import parse_json
from cascaded_diffusion.reading.plain import open_file, size_of

__all__ = ["TensorFacts", "check_fit", "read_header", "read_tensors", "without_memory"]

_LARGEST_HEADER = 8 * 2**20
_LONGEST_NAME = 512
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_SIZES = {**_FLOATS, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class TensorFacts(NamedTuple):
    """What a header says of one tensor; ``dtype`` is the format's word, such as ``F32``."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorFacts:
        """The facts of a tensor in memory, as far as :func:`check_fit` compares them."""
        return cls("F32" if tensor.is_floating_point() else "I64", tuple(tensor.shape))

    @property
    def floating(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype in _FLOATS


class _Unfilled(TorchFunctionMode):
    """Leaves out random initial values: drawn for tensors without memory they are nothing, but import half of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """``func`` of its arguments, or the first of them if it would fill that one with random numbers."""
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks built in this block have tensors with shapes and no memory, to compare a file with."""
    with torch.device("meta"), _Unfilled():
        yield


def read_header(path: Path) -> dict[str, TensorFacts]:
    """Names, types and shapes of a safetensors file's tensors.

    Raises:
        UserError: the file is missing, or its header is longer than the file or 8 MB, no JSON, names a tensor twice,
            has a type that no network here has, or does not lay the tensors side by side over exactly the file's bytes.
    """
    with open_file(path) as file:
        size = size_of(file)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(path, f"its header is to have {length} bytes, the file has {size}")
        if length > _LARGEST_HEADER:
            raise _damaged(path, f"a header of {length} bytes, at most {_LARGEST_HEADER} are read")
        header = parse_json(file.read(length), f"{path}: not a readable safetensors file: its header")
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no object")
    tensors, spans = {}, []
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name], span = _facts(path, name, entry)
            spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _damaged(path, "its tensors overlap or leave gaps")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, f"its tensors take {end} bytes, {size - 8 - length} are there")
    return tensors


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: not a readable safetensors file ({why})")


def _facts(path: Path, name: str, entry: Any) -> tuple[TensorFacts, tuple[int, int]]:
    """One entry of a header, and the bytes that its tensor takes."""
    wrong = _damaged(path, f"the entry {name[:100]!r} is not that of a tensor")
    if len(name) > _LONGEST_NAME or not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES or not _whole_numbers(shape) or not _whole_numbers(offsets):
        raise wrong
    if len(offsets) != 2 or len(shape) > 16 or offsets[1] - offsets[0] != math.prod(shape) * _SIZES[dtype]:
        raise wrong
    return TensorFacts(dtype, tuple(shape)), (offsets[0], offsets[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def check_fit(found: Mapping[str, TensorFacts], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Compare what a file holds with what a network takes; the tensors of ``wanted`` may be on the meta device.

    Raises:
        UserError: naming the tensors that are missing, unexpected, of another shape or no floating-point numbers where
            the network has them.
    """
    both = sorted(found.keys() & wanted.keys())
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": [name for name in both if found[name].shape != tuple(wanted[name].shape)],
        "of another kind of number": [
            name for name in both if found[name].floating != wanted[name].is_floating_point()
        ],
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{path}: tensors {problem} for this config.json: {', '.join(names[:3])}{more}")


def read_tensors(path: Path, wanted: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        wanted: what the network takes, if that is known: then nothing else is read.

    Raises:
        UserError: see :func:`read_header` and :func:`check_fit`, or a tensor holds NaN or infinity.
    """
    found = read_header(path)
    if wanted is not None:
        check_fit(found, wanted, path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} holds values that are not finite; these weights cannot be used")
    return tensors
