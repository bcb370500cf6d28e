"""A ``.npz`` file as a source: images uint8 (N, H, W, C) or (N, H, W), and class numbers if there are any."""

from __future__ import annotations

import hashlib
import math
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.data.sources import ArrayReader, Facts, Item, Source
from cascaded_diffusion.data.workspace import free_space_check
from cascaded_diffusion.errors import UserError

__all__ = ["open_archive"]

MAX_CLASSES = 1_000_000
_LARGEST_ONE_HOT = 2**31
_FORM = "uint8 images (N, height, width), or (N, height, width, channels) with 1 or 3 channels"


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[np.generic]


def open_archive(path: Path, scratch: Path) -> Source:
    """Check an archive's headers, and unpack its pixels to ``scratch``, where they can be mapped into memory.

    Arrays are found under ``arr_0`` or ``images``, and ``arr_1`` or ``labels``. A label of -1 means: without classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            images = _member(path, archive, ("arr_0", "images"))
            labels = _member(path, archive, ("arr_1", "labels"))
            if images is None:
                held = ", ".join(archive.namelist()[:8]) or "nothing"
                raise UserError(f"{path}: no array arr_0 or images in it (it has {held})")
            shape = _unpack_images(path, archive, images, scratch / "pixels.npy")
            classes = None if labels is None else _read_labels(path, archive, labels, shape[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: not a whole .npz file ({error})") from None
    count, height, width, channels = shape
    members = [member for member in (images, labels) if member is not None]
    sums = "".join(f"{member.filename}\0{member.file_size}\0{member.CRC}\n" for member in members)
    return Source(
        name=path.name,
        reader=ArrayReader(scratch / "pixels.npy", str(path)),
        items=[Item(i, label) for i, label in enumerate([-1] * count if classes is None else classes.tolist())],
        class_names=None if classes is None else [str(number) for number in range(int(classes.max()) + 1)],
        fingerprint=hashlib.sha256(sums.encode()).hexdigest(),
        facts=Facts(height, width, channels == 1, None),
    )


def _member(path: Path, archive: zipfile.ZipFile, names: tuple[str, str]) -> zipfile.ZipInfo | None:
    found = [info for info in archive.infolist() if info.filename in {f"{name}.npy" for name in names}]
    if len(found) > 1:
        raise UserError(f"{path}: holds {' and '.join(info.filename for info in found)}; only one of them can be meant")
    if found and found[0].flag_bits & 1:
        raise UserError(f"{path}: {found[0].filename} is encrypted")
    return found[0] if found else None


@contextmanager
def _opened(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[tuple[IO[bytes], _Header]]:
    """A member behind its ``.npy`` header, whose claim of size has been compared with the archive's directory."""
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            header = _Header(*read(file))
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}: {member.filename} is not an array ({error})") from None
        claimed = math.prod(header.shape) * header.dtype.itemsize
        held = member.file_size - file.tell()
        if claimed != held and not header.dtype.hasobject:
            form = f"{header.dtype} {header.shape}"
            raise UserError(f"{path}: {member.filename} claims {claimed} bytes of {form}, it has {held}")
        yield file, header


def _unpack_images(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, to: Path
) -> tuple[int, int, int, int]:
    """Write the images to ``to`` as one array (N, H, W, C) and return its shape."""
    with _opened(path, archive, member) as (file, header):
        shape = (*header.shape, 1) if len(header.shape) == 3 else header.shape
        if header.dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[3] not in (1, 3):
            raise UserError(f"{path}: {member.filename} is {header.dtype} {header.shape}; give {_FORM}")
        free_space_check(to.parent, math.prod(shape))
        with to.open("wb") as unpacked:
            form = {"descr": "|u1", "fortran_order": header.fortran_order, "shape": shape}
            np.lib.format.write_array_header_1_0(unpacked, form)
            shutil.copyfileobj(file, unpacked, 2**20)
    count, height, width, channels = shape
    return count, height, width, channels


def _from_one_hot(path: Path, member: zipfile.ZipInfo, file: IO[bytes], header: _Header) -> npt.NDArray[np.int64]:
    """Class numbers of rows that are 1 at their class and 0 elsewhere."""
    if member.file_size > _LARGEST_ONE_HOT:
        raise UserError(f"{path}: {member.filename} has {member.file_size} bytes; at most {_LARGEST_ONE_HOT} are read")
    order: Literal["C", "F"] = "F" if header.fortran_order else "C"
    rows = np.frombuffer(file.read(), header.dtype).reshape(header.shape, order=order)
    one = rows == 1
    if not ((one.sum(axis=1) == 1) & ((rows == 0).sum(axis=1) == header.shape[1] - 1)).all():
        form = f"{header.dtype} {header.shape}"
        raise UserError(f"{path}: {member.filename} is {form} but not one-hot: give one 1 a row and 0 elsewhere")
    labels: npt.NDArray[np.int64] = one.argmax(axis=1).astype(np.int64)
    return labels


def _read_labels(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, count: int
) -> npt.NDArray[np.int64] | None:
    """Class numbers (N,), or None if any is -1."""
    with _opened(path, archive, member) as (file, header):
        if header.dtype.kind in "iufb" and len(header.shape) == 2 and header.shape[0] == count and header.shape[1]:
            labels = _from_one_hot(path, member, file, header)
        elif header.dtype.kind in "iu" and header.shape == (count,):
            labels = np.frombuffer(file.read(), header.dtype)
        else:
            form = f"{header.dtype} {header.shape}"
            raise UserError(f"{path}: {member.filename} is {form}; give whole numbers ({count},), one per image")
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= MAX_CLASSES:
        allowed = f"give 0 to {MAX_CLASSES - 1}, or -1 for no classes"
        raise UserError(f"{path}: {member.filename} has labels from {low} to {high}; {allowed}")
    return None if low == -1 else labels.astype(np.int64)
