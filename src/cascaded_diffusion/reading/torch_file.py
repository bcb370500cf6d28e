"""Files of ``torch.save``: looked through before torch opens them, and then only as data."""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from cascaded_diffusion.errors import UserError, first_line
from cascaded_diffusion.reading.archive import check_member, open_zip
from cascaded_diffusion.reading.plain import open_file, size_of

__all__ = ["TORCH_DAMAGE", "check_torch_file", "load_foreign_weights"]

TORCH_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
    OverflowError,
    struct.error,
)
"""What ``torch.load`` raises for damaged files."""

_LARGEST_RECORD = 32 * 2**20
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TENSOR_NAMES = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {kind}Storage" for kind in _STORAGES),
    }
)


_ACTIVE = frozenset({"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"})
"""Pickle operations that name or call something in ways that torch.save never uses."""


def check_torch_file(path: Path, largest: int, wrong: str) -> None:
    """Look through a file of ``torch.save`` without loading it.

    ``weights_only`` keeps torch from running code, but not from taking memory: of a member that is packed, or for an
    object that a few bytes ask for. So members must be stored as they are, and the one that says what the file holds
    may name nothing but tensors and their storages.

    Args:
        path: the file.
        largest: the most bytes it may have.
        wrong: what to say of one that is damaged, such as ``not a file of weights``.

    Raises:
        UserError: the file is missing, larger, damaged, or holds anything but tensors.
    """
    with open_file(path) as file:
        size = size_of(file)
        if size > largest:
            raise UserError(f"{path}: {size} bytes; at most {largest} are read")
    with open_zip(path, wrong) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        records = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(records) != 1 or len(set(names)) != len(names):
            raise UserError(f"{path}: {wrong} (not one record data.pkl, or a name twice)")
        for member in members:
            check_member(path, archive, member)
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: {wrong} ({member.filename} is packed; torch.save packs nothing)")
        if sum(member.file_size for member in members) > size:
            raise UserError(f"{path}: {wrong} (its records overlap)")
        if records[0].file_size > _LARGEST_RECORD:
            raise UserError(
                f"{path}: {wrong} (a record of {records[0].file_size} bytes, at most {_LARGEST_RECORD} are read)"
            )
        _check_names(path, io.BytesIO(archive.read(records[0])), size, wrong)


def _check_names(path: Path, record: Any, most: int, wrong: str) -> None:
    """Refuse a record that names anything but tensors, or a number above ``most``. It is taken apart, not executed."""
    try:
        for operation, argument, _ in pickletools.genops(record):
            found = None
            if operation.name in _ACTIVE or (operation.name == "GLOBAL" and argument not in _TENSOR_NAMES):
                found = repr(str(argument or operation.name)[:100])
            elif isinstance(argument, int) and not isinstance(argument, bool) and not -1 <= argument <= most:
                found = f"a number of {argument.bit_length()} bits"
            if found is not None:
                raise UserError(f"{path}: {wrong} (it holds {found}, not tensors alone)")
    except UserError:
        raise
    except (ValueError, IndexError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: {wrong} (its record: {error})") from None


def _check_old_file(path: Path, wrong: str) -> None:
    """Look through a file in the form that torch wrote before 1.6: five records, then the storages."""
    with open_file(path) as file:
        size = size_of(file)
        if not size:
            raise UserError(f"{path}: {wrong} (it is empty)")
        # Mapped, because a file takes memory for as many bytes as it is asked for, however few it has.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # A magic number, the version, sizes of numbers, the tensors, the storages' names.
            for most in (2**127, 2**16, 2**16, size, size):
                _check_names(path, content, most, wrong)
    if tarfile.is_tarfile(path):  # in a still older form, which torch would unpack to a folder
        raise UserError(f"{path}: {wrong} (a tar archive)")


def load_foreign_weights(path: Path, largest: int) -> Any:
    """The content of a weights file that another project made with ``torch.save``, on the CPU.

    Raises:
        UserError: see :func:`check_torch_file`; files in the form that torch used before 1.6 are looked through too.
    """
    wrong = "not a file of weights"
    with open_file(path) as file:
        zipped = file.read(4) == b"PK\x03\x04"
        size = size_of(file)
    if size > largest:
        raise UserError(f"{path}: {size} bytes; at most {largest} are read")
    if zipped:
        check_torch_file(path, largest, wrong)
    else:
        _check_old_file(path, wrong)
    try:
        # Mapped, a large file need not be in memory twice.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except TORCH_DAMAGE as error:
        line = first_line(error)
        raise UserError(f"{path}: {wrong} ({line})") from None
