"""Writing ``.npy`` files row by row, so that no data set has to fit in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.files import sync_folder

__all__ = ["GrowingArray", "RowWriter", "save_array"]


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


class GrowingArray:
    """A ``.npy`` file of uint8 images (N, H, W, C) to which images are added one by one, N being known at the end."""

    def __init__(self, path: Path, side: int, channels: int) -> None:
        self.path, self.count = path, 0
        self._row = (side, side, channels)
        self._file = path.open("w+b")
        self._start = _write_header(self._file, (0, *self._row), np.dtype(np.uint8))

    def append(self, image: npt.NDArray[np.uint8]) -> None:
        """Add an image (H, W, C), or (H, W, 1) whose grey is repeated in every channel."""
        self._file.write(np.ascontiguousarray(np.broadcast_to(image, self._row)).tobytes())
        self.count += 1

    def widen(self, channels: int) -> None:
        """Give grey images more channels, all alike."""
        self._rewrite((*self._row[:2], channels), range(self.count))

    def close(self, order: Sequence[int] | None = None) -> None:
        """Put the file on disk; with ``order``, of these rows in this order."""
        if order is not None and list(order) != list(range(self.count)):
            self._rewrite(self._row, order)
        self._file.seek(0)
        if _write_header(self._file, (self.count, *self._row), np.dtype(np.uint8)) != self._start:
            raise ValueError(f"{self.path}: no room for the header of {self.count} rows")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def _rewrite(self, row: tuple[int, int, int], order: Iterable[int]) -> None:
        """Copy rows into a second file and put it in this one's place."""
        size, old = math.prod(self._row), self._file
        replacement = self.path.with_name(f".{self.path.name}")
        self._file = replacement.open("w+b")
        start = _write_header(self._file, (0, *row), np.dtype(np.uint8))
        old_row, self._row, self.count = self._row, row, 0
        with old:
            for i in order:
                old.seek(self._start + i * size)
                self.append(np.frombuffer(old.read(size), np.uint8).reshape(old_row))
        self._start = start
        replacement.replace(self.path)


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
