"""Opening files: only files, never a pipe that waits for ever, and never more than is expected."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO

from cascaded_diffusion.errors import UserError

__all__ = ["open_file", "read_bytes", "read_lines", "refuse_outside", "size_of"]


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        UserError: there is none, it cannot be opened, or it is a folder, pipe, socket or device, whose reading may
            never end.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode)  # before it is opened, which can already do something to a device
        # By name, so that a map of the file knows where it is from.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: cannot be read (its name holds a NUL character)") from None
    try:
        _refuse_special(path, os.fstat(file.fileno()).st_mode)  # what is there now, if it was exchanged
    except UserError:
        file.close()
        raise
    return file


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or socket"
        raise UserError(f"{path}: cannot be read (it is a {kind}, not a file)")


def size_of(file: IO[bytes]) -> int:
    """Bytes that an open file holds."""
    return os.fstat(file.fileno()).st_size


def read_bytes(path: Path, limit: int, *, what: str = "bytes") -> bytes:
    """The whole content of a file of at most ``limit`` bytes.

    Raises:
        UserError: see :func:`open_file`, or the file is larger.
    """
    with open_file(path) as file:
        size = size_of(file)
        try:
            content = b"" if size > limit else file.read(limit + 1)  # some files hold more than they say
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if max(size, len(content)) > limit:
        raise UserError(f"{path}: {max(size, len(content))} {what}, at most {limit} are read")
    return content


def read_lines(path: Path, longest: int) -> Iterator[bytes]:
    """The lines of a file with their ends, one at a time; of longer ones, pieces of ``longest`` bytes."""
    with open_file(path) as file:
        while line := file.readline(longest):
            yield line


def refuse_outside(folder: Path, *paths: Path) -> None:
    """``UserError`` if one of ``paths`` is a link, or lies behind one, that leads out of ``folder``.

    A folder that came from a stranger must not show or change what is elsewhere. The cache of Hugging Face, which keeps
    every file of a snapshot as a link into its own ``blobs``, counts as one folder.
    """
    try:
        home = folder.resolve()
        for above in home.parents:
            if above.name == "snapshots" and (above.parent / "blobs").is_dir():
                home = above.parent
                break
        outside = [path for path in paths if not path.resolve().is_relative_to(home)]
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        raise UserError(f"{folder}: holds links that cannot be followed") from None
    if outside:
        raise UserError(f"{outside[0]}: a link that leads out of {folder}; put the file itself there")
