"""Writing ``.npy`` files row by row, so that no data set has to fit in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.files import sync_folder

__all__ = ["RowWriter", "save_array"]


class RowWriter:
    """A ``.npy`` file of known shape whose rows are written in any order.

    Plain writes instead of a memory map: a full disk is then an ``OSError``, where a map would kill the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._row_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        self._file = path.open("w+b")
        self._start = _write_header(self._file, shape, self.dtype)
        self._next = 0  # the row at which the file stands

    def write(self, row: int, values: npt.NDArray[np.generic]) -> None:
        """Store ``values`` as row ``row``."""
        if row != self._next:
            self._file.seek(self._start + row * self._row_bytes)
        self._next = row + 1
        self._file.write(np.ascontiguousarray(values, self.dtype).tobytes())

    def close(self, missing: Sequence[int] = ()) -> None:
        """Put the file on disk; rows in ``missing`` are left out and those behind them move up."""
        if missing:
            self._close_up(sorted(missing))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def _close_up(self, missing: list[int]) -> None:
        """Copy the rows that stay into a second file and put it in this one's place."""
        gone, complete = set(missing), self._file
        replacement = self.path.with_name(f".{self.path.name}")
        kept = (self.shape[0] - len(gone), *self.shape[1:])
        self._file = replacement.open("w+b")
        _write_header(self._file, kept, self.dtype)
        for row in range(self.shape[0]):
            if row not in gone:
                complete.seek(self._start + row * self._row_bytes)
                self._file.write(complete.read(self._row_bytes))
        complete.close()
        replacement.replace(self.path)
        self.shape = kept


def save_array(path: Path, values: npt.NDArray[np.generic]) -> None:
    """Write a whole ``.npy`` file and put it on disk."""
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _write_header(file: object, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
    return int(file.tell())  # type: ignore[attr-defined]
