"""The hidden folder a preparation works in, and the rules for what it may replace."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cascaded_diffusion.data.manifest import Manifest, Request
from cascaded_diffusion.data.options import Options
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import fill_folder, sync_folder, try_lock

__all__ = ["finished_manifest", "free_space_check", "workspace"]

MANIFEST = "manifest.json"
_INSIDE = ".preparing"
_SPLITS = ("train", "val")
_OWN_ENTRIES = {*_SPLITS, "scratch", "manifest"}  # up to the first dot; atomic writes put one in front


@contextlib.contextmanager
def workspace(out: Path, source: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield an empty hidden folder and one for scratch inside it; at the end its content is that of ``out``.

    It lies beside ``out`` and takes its name. If ``out`` is there, empty, it lies inside: that may be a mount point, or
    in a place where nothing else may be written. It is locked, so two runs cannot share it. If the body raises, it is
    removed; what a killed run left is removed by the next. If the body wrote no manifest, ``out`` is left as it was.
    """
    target = out.resolve()
    _check_target(out, target, source)
    is_inside = target.is_dir() and os.access(target, os.W_OK)
    work = target / _INSIDE if is_inside else target.with_name(f".{target.name}{_INSIDE}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}: {error.filename})") from None
    try:
        _lock(descriptor, work, out)
        _check_target(out, target, source)  # another run may have finished between the first look and the lock
        if is_inside and not (target / MANIFEST).is_file():
            for split in _moved_by_a_killed_run(target):
                shutil.rmtree(target / split)
        _clear(work)
        scratch = work / "scratch"
        scratch.mkdir()
        try:
            yield work, scratch
            shutil.rmtree(scratch)
            if (work / MANIFEST).exists():
                for folder in [*(entry for entry in work.iterdir() if entry.is_dir()), work]:
                    sync_folder(folder)
                if is_inside:
                    if any(entry != work for entry in target.iterdir()):
                        raise UserError(f"{out}: another program has filled it meanwhile; give a new folder")
                    fill_folder(target, work)
                else:
                    os.rename(work, target)
                    sync_folder(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # after the rename there is none
    finally:
        os.close(descriptor)


def _moved_by_a_killed_run(target: Path) -> list[str]:
    """Splits that a run which worked inside an empty folder had moved when it was killed: its manifest was still to."""
    work = target / _INSIDE
    return [
        split
        for split in _SPLITS
        if (work / MANIFEST).is_file() and not (work / split).exists() and (target / split).is_dir()
    ]


def finished_manifest(out: Path, source: str, request: Request, options: Options) -> Manifest | None:
    """The manifest of ``out`` if it is this very request's result, None if there is none, else a ``UserError``."""
    from cascaded_diffusion.data.prepared import PreparedData

    if not (out / MANIFEST).exists():
        return None
    manifest = PreparedData.open(out).manifest
    differing = [
        f"{name} {old!r}, not {new!r}"
        for name, old, new in [
            ("source", manifest.source, source),
            ("resolutions", manifest.resolutions, options.resolutions),
            ("compressed", manifest.compressed, options.compressed),
            ("val", manifest.request.val, request.val),
            ("limit", manifest.request.limit, request.limit),
            ("skip_bad", manifest.request.skip_bad, request.skip_bad),
            ("allow_upscale", manifest.request.allow_upscale, request.allow_upscale),
        ]
        if old != new
    ]
    if not differing and manifest.request != request:
        differing = ["a source with other files"]
    if differing:
        found = "; ".join(differing)
        raise UserError(f"{out}: already holds data prepared with {found}; give another folder or remove it")
    return manifest


def free_space_check(folder: Path, needed: int) -> None:
    """Refuse to start writing ``needed`` bytes where there is less room."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder.parent}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free on this disk")


def _check_target(out: Path, target: Path, source: Path | None) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{out}: a file of this name exists; give a new folder")
    if target.is_dir() and not (target / MANIFEST).is_file() and not _holds_leftovers(target):
        raise UserError(f"{out}: not empty and not prepared data; nothing is overwritten, give a new folder")
    if source is not None and source.is_dir() and source.resolve() in [target, *target.parents]:
        raise UserError(f"{out}: lies inside the source {source}; give a folder elsewhere")


def _holds_leftovers(target: Path) -> bool:
    """Whether a folder is empty, or holds only what a run killed while it worked inside it left."""
    return {entry.name for entry in target.iterdir()} <= {_INSIDE, *_moved_by_a_killed_run(target)}


def _lock(descriptor: int, work: Path, out: Path) -> None:
    busy = UserError(f"{out}: another cdm prepare is writing it at this moment")
    if not try_lock(descriptor):
        raise busy
    if not work.exists() or not os.path.samestat(os.fstat(descriptor), work.stat()):
        raise busy  # that run has finished between opening and locking


def _clear(work: Path) -> None:
    """Remove what a killed run left, and only that."""
    for entry in work.iterdir():
        if entry.name.lstrip(".").split(".")[0] not in _OWN_ENTRIES:
            raise UserError(f"{entry}: not left by cdm prepare; remove the folder {work} by hand")
    for entry in work.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
