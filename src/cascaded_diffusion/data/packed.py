"""Images that lie compressed in one file, without loss, and are read one by one.

``images_<R>.pack`` holds one lossless WebP picture after the other, ``images_<R>.offsets.npy`` int64 (N + 1,) where
each begins and the last ends.
"""

from __future__ import annotations

import errno
import math
import os
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.data.arrays import save_array
from cascaded_diffusion.data.workers import WorkerPool
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.npy import map_npy
from cascaded_diffusion.reading.plain import open_file, size_of
from cascaded_diffusion.reading.webp import decode_webp, encode_webp, need_webp

__all__ = ["ImageRows", "PackedImages", "offsets_file", "pack_array"]

_CHUNK = 64
_CHUNK_BYTES = 2**24
"""Images that a process compresses at a time, and the bytes of their pixels: all that wait lie in memory."""
_LONGEST = 4096
"""Bytes that a picture may have beyond twice its pixels, which none needs."""


class ImageRows(Protocol):
    """uint8 images (N, R, R, C): an array, or what gives its rows as one does."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, where: Any, /) -> Any: ...

    def __array__(self, dtype: Any = None, /) -> npt.NDArray[Any]: ...


def offsets_file(path: Path) -> Path:
    """Where the offsets of a ``.pack`` lie."""
    return path.with_suffix(".offsets.npy")


class PackedImages:
    """The images of a ``.pack`` file, read-only, decoded when they are asked for; threads may share it.

    ``images[i]``, ``images[start:stop]``, ``images[places]`` and ``images[mask]`` give arrays as numpy would, and
    ``np.asarray(images)`` all of them.

    Attributes:
        shape: (N, R, R, C).
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        """Open the file and check where its pictures begin; none is read yet.

        Raises:
            UserError: a file is missing, cut short, or not one of ``shape[0]`` images.
        """
        need_webp()
        self.path, self.shape = path, shape
        count, side, _, channels = shape
        places = offsets_file(path)
        self._offsets = np.array(map_npy(places, np.int64, (count + 1,)))
        with open_file(path) as file:
            held = size_of(file)
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        sizes = np.diff(self._offsets)
        longest = 2 * side * side * channels + _LONGEST
        if self._offsets[0] != 0 or sizes.min() < 1 or sizes.max() > longest:
            raise UserError(f"{places}: not where pictures of {side}x{side} pixels can begin and end")
        if self._offsets[-1] != held:
            raise UserError(f"{path}: holds {held} bytes, not the {self._offsets[-1]} of {count} pictures")

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return map(self._read, range(len(self)))

    def __getitem__(self, where: Any) -> npt.NDArray[np.uint8]:
        if isinstance(where, int | np.integer):
            return self._read(range(len(self))[int(where)])
        places = np.arange(len(self))[where]
        if places.ndim != 1:
            raise IndexError(f"{where!r}: only the first axis of compressed images can be indexed")
        images = np.empty((len(places), *self.shape[1:]), np.uint8)
        for image, place in zip(images, places.tolist(), strict=True):
            image[...] = self._read(place)
        return images

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("compressed images cannot be an array without being decoded")
        images = self[:]
        return images if dtype is None else images.astype(dtype, copy=False)

    def _read(self, place: int) -> npt.NDArray[np.uint8]:
        start, stop = (int(offset) for offset in self._offsets[place : place + 2])
        content = os.pread(self._descriptor, stop - start, start)
        if len(content) != stop - start:
            raise OSError(errno.EIO, f"image {place} is not whole; the file has been cut short", str(self.path))
        try:
            return decode_webp(content, self.shape[1], self.shape[3])
        except ValueError as error:
            raise UserError(f"{self.path}: image {place}: {error}") from None


def pack_array(
    source: Path,
    target: Path,
    shape: tuple[int, int, int, int],
    pool: WorkerPool,
    told: Callable[[int], None] = lambda done: None,
) -> None:
    """Compress the ``.npy`` images of ``source`` into ``target`` and its offsets, and remove ``source``.

    Args:
        source: uint8, of ``shape``.
        target: the ``.pack``.
        shape: (N, R, R, C).
        pool: does the work.
        told: called with images done.
    """
    need_webp()
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // math.prod(shape[1:])))
    starts = range(0, shape[0], chunk)
    offsets = np.zeros(shape[0] + 1, np.int64)
    done = 0
    with target.open("wb") as file:
        for pictures in pool.map(partial(_compress, source, shape, chunk), starts):
            for picture in pictures:
                file.write(picture)
                offsets[done + 1] = offsets[done] + len(picture)
                done += 1
            told(done)
        file.flush()
        os.fsync(file.fileno())
    save_array(offsets_file(target), offsets)
    source.unlink()


def _compress(source: Path, shape: tuple[int, int, int, int], chunk: int, start: int) -> list[bytes]:
    images = map_npy(source, np.uint8, shape)[start : start + chunk]
    return [encode_webp(image) for image in images]
