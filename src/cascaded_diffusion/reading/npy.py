"""``.npy`` arrays: the header is read as a pattern, never evaluated, and compared with the file before it is mapped.

The format is numpy's: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.plain import open_file, size_of

__all__ = ["NpyHeader", "map_npy", "read_npy_header"]

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096
_ENTRY = (
    r"'(?P<key{0}>descr|fortran_order|shape)' *: *"
    r"(?P<value{0}>'[<>|=]?[?biufcSUOmMV][0-9]{{0,4}}'|True|False|\((?:[0-9]{{1,19}}, ?)*(?:[0-9]{{1,19}})?\)) *,? *"
)
_HEADER = re.compile(r"\{ *" + "".join(_ENTRY.format(i) for i in range(3)) + r"\}[ \n]*")


class NpyHeader(NamedTuple):
    """What a ``.npy`` header claims."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def describe(self) -> str:
        """Type and shape in words."""
        return f"{self.dtype} {self.shape}"


def read_npy_header(file: IO[bytes]) -> NpyHeader:
    """Read the header at the start of ``file``, which then stands at the array's first byte.

    Raises:
        ValueError: no header, one longer than 4096 bytes, or one of anything but a plain array.
    """
    start = file.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or start[6] not in (1, 2, 3) or start[7]:
        raise ValueError("it does not begin like a .npy array")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes, at most {_LONGEST_HEADER} are read")
    found = _HEADER.fullmatch(file.read(length).decode("latin-1"))
    values = {} if found is None else {found[f"key{i}"]: found[f"value{i}"] for i in range(3)}
    try:
        order = {"True": True, "False": False}[values["fortran_order"]]
        shape = tuple(int(word) for word in values["shape"].strip("()").split(",") if word.strip())
        dtype = np.dtype(values["descr"].strip("'"))
        plain = values["shape"][0] == "(" and values["descr"][0] == "'" and len(shape) <= 32
    except (KeyError, TypeError, ValueError):
        plain = False
    if not plain:
        raise ValueError("its header is not that of a plain array")
    return NpyHeader(shape, order, dtype)


def map_npy(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """Map a ``.npy`` file into memory, read-only, after its header and its size have been checked.

    Raises:
        UserError: the file is missing, no ``.npy`` file, of another type, shape or order, or shorter or longer than it
            must be.
    """
    with open_file(path) as file:
        try:
            header = read_npy_header(file)
        except ValueError as error:
            raise UserError(f"{path}: not a whole .npy file ({error})") from None
        start, held = file.tell(), size_of(file)
        if header.dtype != dtype or header.shape != shape or (header.fortran_order and len(shape) > 1):
            order = " in Fortran order" if header.fortran_order else ""
            wanted = f"{np.dtype(dtype)} {shape} in C order"
            raise UserError(f"{path}: {header.describe()}{order}; the manifest asks for {wanted}")
        if held - start != header.size:
            raise UserError(
                f"{path}: not a whole .npy file ({held - start} bytes behind its header, not {header.size})"
            )
        return np.memmap(file, dtype, "r", start, shape)
