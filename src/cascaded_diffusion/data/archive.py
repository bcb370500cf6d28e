"""A ``.npz`` file as a source: images uint8 (N, H, W, C) or (N, H, W), and class numbers if there are any."""

from __future__ import annotations

import hashlib
import math
import shutil
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.data.sources import ArrayReader, Facts, Item, Source
from cascaded_diffusion.data.workspace import free_space_check
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.archive import open_array, open_zip
from cascaded_diffusion.reading.npy import NpyHeader

__all__ = ["open_archive"]

MAX_CLASSES = 1_000_000
MAX_IMAGES = 10_000_000  # each takes some 200 bytes of memory beside its pixels
_LARGEST_FORTRAN = 2**28
_BLOCK = 2**24
_FORM = "uint8 images (N, height, width), or (N, height, width, channels) with 1 or 3 channels"


def open_archive(path: Path, scratch: Path) -> Source:
    """Check an archive's headers, and unpack its pixels to ``scratch``, where they can be mapped into memory.

    Arrays are found under ``arr_0`` or ``images``, and ``arr_1`` or ``labels``. Labels that are all -1 mean: without
    classes.

    Raises:
        UserError: not such a file, or a label of -1 beside others.
    """
    with open_zip(path, "not a whole .npz file") as archive:
        images = _member(path, archive, ("arr_0", "images"))
        labels = _member(path, archive, ("arr_1", "labels"))
        if images is None:
            held = ", ".join(name[:40] for name in archive.namelist()[:8]) or "nothing"
            raise UserError(f"{path}: no array arr_0 or images in it (it has {held})")
        shape = _unpack_images(path, archive, images, scratch / "pixels.npy")
        classes = None if labels is None else _read_labels(path, archive, labels, shape[0])
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
    return found[0] if found else None


def _unpack_images(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, to: Path
) -> tuple[int, int, int, int]:
    """Write the images to ``to`` as one array (N, H, W, C) and return its shape."""
    with open_array(path, archive, member) as (file, header):
        shape = (*header.shape, 1) if len(header.shape) == 3 else header.shape
        if header.dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[3] not in (1, 3):
            raise UserError(f"{path}: {member.filename} is {header.describe()}; give {_FORM}")
        if shape[0] > MAX_IMAGES:
            raise UserError(f"{path}: {member.filename} holds {shape[0]} images; at most {MAX_IMAGES} are read")
        free_space_check(to.parent, math.prod(shape))
        with to.open("wb") as unpacked:
            form = {"descr": "|u1", "fortran_order": header.fortran_order, "shape": shape}
            np.lib.format.write_array_header_1_0(unpacked, form)
            shutil.copyfileobj(file, unpacked, 2**20)
    count, height, width, channels = shape
    return count, height, width, channels


def _from_one_hot(path: Path, member: zipfile.ZipInfo, file: IO[bytes], header: NpyHeader) -> npt.NDArray[np.int64]:
    """Class numbers of rows that are 1 at their class and 0 elsewhere."""
    count, classes = header.shape
    if classes > MAX_CLASSES:
        raise UserError(f"{path}: {member.filename} is {header.describe()}; at most {MAX_CLASSES} classes are read")
    if header.fortran_order and member.file_size > _LARGEST_FORTRAN:
        raise UserError(f"{path}: {member.filename} is {header.describe()} in Fortran order; give it in C order")
    at_once = count if header.fortran_order else max(1, _BLOCK // (classes * header.dtype.itemsize))
    labels = np.empty(count, np.int64)
    for start in range(0, count, at_once):
        here = min(at_once, count - start)
        block = np.frombuffer(_exactly(file, here * classes * header.dtype.itemsize), header.dtype)
        rows = block.reshape((here, classes), order="F" if header.fortran_order else "C")
        one = rows == 1
        if not ((one.sum(axis=1) == 1) & ((rows == 0).sum(axis=1) == classes - 1)).all():
            found = f"{member.filename} is {header.describe()}"
            raise UserError(f"{path}: {found} but not one-hot: give one 1 a row and 0 elsewhere")
        labels[start : start + here] = one.argmax(axis=1)
    return labels


def _exactly(file: IO[bytes], size: int) -> bytes:
    """The next ``size`` bytes, and at the end of the member the comparison with its check sum."""
    content = file.read(size)
    while len(content) < size:
        more = file.read(size - len(content))
        if not more:
            raise EOFError("it ends early")
        content += more
    return content


def _read_labels(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, count: int
) -> npt.NDArray[np.int64] | None:
    """Class numbers (N,), or None if all are -1."""
    with open_array(path, archive, member) as (file, header):
        if header.dtype.kind in "iufb" and len(header.shape) == 2 and header.shape[0] == count and header.shape[1]:
            labels = _from_one_hot(path, member, file, header)
        elif header.dtype.kind in "iu" and header.shape == (count,):
            labels = np.frombuffer(file.read(), header.dtype)
        else:
            form = header.describe()
            raise UserError(f"{path}: {member.filename} is {form}; give whole numbers ({count},), one per image")
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= MAX_CLASSES:
        allowed = f"give 0 to {MAX_CLASSES - 1}, or -1 for no classes"
        raise UserError(f"{path}: {member.filename} has labels from {low} to {high}; {allowed}")
    if low == -1 < high:
        missing, known = int((labels == -1).argmax()), int((labels != -1).argmax())
        found = f"no class (-1) for image {missing}, where image {known} has class {labels[known]}"
        raise UserError(f"{path}: {member.filename} has {found}; give all images a class, or all -1")
    return None if high == -1 else labels.astype(np.int64)
