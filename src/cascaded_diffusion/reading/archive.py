"""Zip archives, ``.npz`` files among them: what a member unpacks to is known, and bounded, before it is unpacked."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from cascaded_diffusion.errors import UserError, one_line
from cascaded_diffusion.reading.npy import NpyHeader, read_npy_header
from cascaded_diffusion.reading.plain import open_file, size_of

__all__ = ["DAMAGE", "check_member", "open_array", "open_zip", "read_npz", "refuse_bomb"]

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    UnicodeDecodeError,
)
"""What Python's ``zipfile`` raises for damaged archives."""

_HARMLESS = 16 * 2**20
_STEEPEST = 100
_LARGEST_DIRECTORY = 16 * 2**20
_END, _END_SIZE = b"PK\x05\x06", 22
_LOCATOR_64 = b"PK\x06\x07"


def refuse_bomb(name: str, packed: int, unpacked: int) -> None:
    """``UserError`` if a few bytes unpack to very many, as no photograph's pixels and no weights do.

    Anything up to 16 MB passes, and so does what grows at most a hundredfold; deflate can pack zeros a thousandfold.
    """
    if unpacked > _HARMLESS and unpacked > _STEEPEST * packed:
        raise UserError(f"{name}: {packed} bytes that unpack to {unpacked}; at most {_STEEPEST} times as many are read")


@contextmanager
def open_zip(path: Path, wrong: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; damage, also what shows only while it is read, is a ``UserError``: ``path`` is ``wrong``."""
    with open_file(path) as file:
        try:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                yield archive
        except UserError:
            raise
        except DAMAGE as error:
            reason = one_line(error)
            raise UserError(f"{path}: {wrong} ({reason})") from None


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a list of members so long that reading it alone takes gigabytes."""
    file.seek(max(0, size_of(file) - _END_SIZE - 2**16))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_SIZE:
        raise zipfile.BadZipFile("File is not a zip file")
    claimed = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 76 and tail[at - 20 : at].startswith(_LOCATOR_64):
        claimed = int.from_bytes(tail[at - 36 : at - 28], "little")
    if claimed > _LARGEST_DIRECTORY:
        raise zipfile.BadZipFile(f"a directory of {claimed} bytes, at most {_LARGEST_DIRECTORY} are read")
    file.seek(0)


def check_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """``UserError`` for a member that is encrypted, packed in a way that numpy never uses, longer than the archive,
    or a zip bomb."""
    name = f"{path}: {member.filename}"
    if member.flag_bits & 1:
        raise UserError(f"{name} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{name} is packed by method {member.compress_type}; stored and deflated members are read")
    held = size_of(archive.fp) if archive.fp is not None else 0
    if member.compress_size > held:  # zipfile would take memory for all of them at once
        raise UserError(f"{name} claims {member.compress_size} bytes of an archive of {held}")
    refuse_bomb(name, member.compress_size, member.file_size)


@contextmanager
def open_array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[tuple[IO[bytes], NpyHeader]]:
    """A member behind its ``.npy`` header, whose claim of size has been compared with the archive's directory."""
    check_member(path, archive, member)
    with archive.open(member) as file:
        try:
            header = read_npy_header(file)
        except ValueError as error:
            raise UserError(f"{path}: {member.filename} is not an array ({error})") from None
        held = member.file_size - file.tell()
        if header.size != held and not header.dtype.hasobject:
            claim = f"claims {header.size} bytes of {header.describe()}, it has {held}"
            raise UserError(f"{path}: {member.filename} {claim}")
        yield file, header


def read_npz(path: Path, dtypes: Mapping[str, type[np.generic]], *, limit: int) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file that are there, by name.

    Args:
        path: the file.
        dtypes: names of the arrays wanted, and their types; ``np.str_`` is text of any length.
        limit: most bytes that all of them may take together.

    Raises:
        UserError: the file is damaged, or an array is of another type or too large.
    """
    arrays = {}
    with open_zip(path, "not a whole .npz file") as archive:
        for name, dtype in dtypes.items():
            found = [member for member in archive.infolist() if member.filename == f"{name}.npy"]
            if len(found) > 1:
                raise UserError(f"{path}: holds {name} twice")
            if found:
                with open_array(path, archive, found[0]) as (file, header):
                    text = dtype is np.str_ and header.dtype.kind == "U" and header.dtype.itemsize > 0
                    if header.dtype != dtype and not text:
                        raise UserError(f"{path}: {name} is {header.describe()}; {np.dtype(dtype)} is needed")
                    limit -= header.size
                    if limit < 0:
                        raise UserError(f"{path}: {name} is {header.describe()}, more than can be meant")
                    arrays[name] = _array(file, header)
    return arrays


def _array(file: IO[bytes], header: NpyHeader) -> np.ndarray:
    content, at = np.empty(header.size, np.uint8), 0
    while block := file.read(2**20):
        content[at : at + len(block)] = np.frombuffer(block, np.uint8)
        at += len(block)
    return content.view(header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")
