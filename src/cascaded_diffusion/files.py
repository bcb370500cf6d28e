"""Files that appear under their name only when they are complete, and the hashes that prove it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cascaded_diffusion.errors import UserError

__all__ = [
    "atomic_write",
    "new_folder",
    "open_as_usual",
    "read_json",
    "reason",
    "refuse_filled",
    "sha256_of",
    "sync_folder",
    "write_json",
]


def reason(error: OSError) -> str:
    """Why a file could not be written or read, in the system's words, with the file's name if it is known."""
    words = error.strerror or str(error)
    return f"{words}: {error.filename}" if isinstance(error.filename, str) else words


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the name ``path`` only after its content is on disk.

    If the body raises, or the process dies, ``path`` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        open_as_usual(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def open_as_usual(path: Path) -> None:
    """Give a file the permissions that a plain new file has; some writers make theirs for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, *, limit: int = 64 * 2**20) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Raises:
        UserError: the file is missing, unreadable, larger or malformed.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path}: {size} bytes of JSON, at most {limit} are read")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_filled(path: Path) -> None:
    """``UserError`` if ``path`` is there already and not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: already there and not an empty folder; choose another name or delete it")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``path`` when the body is through; nothing is left if it raises.

    Raises:
        UserError: ``path`` is there already and not an empty folder.
    """
    refuse_filled(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
