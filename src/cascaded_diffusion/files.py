"""Files that appear under their name only when they are complete, and the hashes that prove it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.reading.json_text import read_json
from cascaded_diffusion.reading.plain import open_file

__all__ = [
    "atomic_write",
    "fill_folder",
    "new_folder",
    "open_as_usual",
    "read_json",
    "reason",
    "refuse_filled",
    "sha256_of",
    "sync_folder",
    "try_lock",
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


def _hold(path: Path, flags: int) -> int | None:
    """Open and lock a temporary of this process's own, perhaps left by one that died; ``None`` if it is not to be had.

    That is so while another process writes it, and where files cannot be locked.
    """
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        # Between opening and locking, the process that held it may have given it its final name.
        if os.path.samestat(found, path.lstat()) and found.st_uid == os.geteuid():
            return descriptor
    if descriptor is not None:
        os.close(descriptor)
    return None


def _new_temporary(path: Path) -> tuple[int, Path]:
    """An empty file beside ``path``, open and locked.

    It has the same name every time, so that what a killed process leaves is overwritten by the next, and never piles
    up; only if two processes write the same file at the same time does the second get a name of its own.
    """
    temporary = path.with_name(f".{path.name}.partial")
    descriptor = _hold(temporary, os.O_WRONLY | os.O_CREAT)
    if descriptor is None:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        return descriptor, Path(name)
    os.ftruncate(descriptor, 0)
    return descriptor, temporary


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the name ``path`` only after its content is on disk.

    If the body raises, or the process dies, ``path`` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = _new_temporary(path)
    with os.fdopen(descriptor, "wb") as file:
        try:
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
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; ``ValueError`` for NaN and infinity, which JSON cannot hold."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content; ``UserError`` if it is missing, or a pipe or device."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder for this process; ``False`` if another process holds it.

    Where nothing can be locked, as on some network file systems, nobody is known to hold it, and it is ``True``.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


_INSIDE = ".partial"


def refuse_filled(path: Path) -> None:
    """``UserError`` if ``path`` is there already and not an empty folder."""
    if path.exists() and (not path.is_dir() or any(not entry.name.startswith(_INSIDE) for entry in path.iterdir())):
        raise UserError(f"{path}: already there and not an empty folder; choose another name or delete it")


def fill_folder(target: Path, made: Path) -> None:
    """Move all that ``made`` holds into an empty folder on the same disk; if that fails, all of it is moved back.

    Folders go first: what makes the whole one of ours is a file beside them.
    """
    entries = sorted(made.iterdir(), key=lambda entry: (entry.is_file(), entry.name))
    try:
        for entry in entries:
            entry.rename(target / entry.name)
    except BaseException:
        for entry in entries:
            if not os.path.lexists(entry):
                (target / entry.name).rename(entry)
        raise
    sync_folder(target)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``path`` when the body is through; nothing is left if it raises.

    An empty folder of that name is filled, not replaced: it may be the current one, a link's target or a mount point,
    or in a place where nothing else may be written.

    Raises:
        UserError: ``path`` is there already and not an empty folder.
    """
    refuse_filled(path)
    is_there = path.exists()
    if not is_there:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _new_temporary_folder(path / _INSIDE if is_there else path.with_name(f".{path.name}.partial"))
    try:
        yield temporary
        if is_there:
            refuse_filled(path)  # another process may have filled it meanwhile
            fill_folder(path, temporary)
            temporary.rmdir()
        else:
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(path)
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _new_temporary_folder(temporary: Path) -> tuple[Path, int | None]:
    """An empty folder of that name, under the rules of :func:`_new_temporary`, and what locks it."""
    with contextlib.suppress(FileExistsError):
        temporary.mkdir(mode=0o700)
    lock = _hold(temporary, os.O_RDONLY | os.O_DIRECTORY)
    if lock is None:
        return Path(tempfile.mkdtemp(prefix=f"{temporary.name}.", dir=temporary.parent)), None
    for entry in temporary.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return temporary, lock
