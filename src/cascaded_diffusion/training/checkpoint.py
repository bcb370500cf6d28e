"""Checkpoints of a run: folders named by the images seen, complete or absent.

A checkpoint is written under a name that starts with a dot and renamed when every file, the manifest with their hashes
last, is on disk. ``checkpoints/`` therefore holds only complete folders. One that is damaged later is found by its
hashes, told of, and put aside under a name that starts with a dot.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import load_weights
from cascaded_diffusion.errors import UserError, first_line
from cascaded_diffusion.files import read_json, sha256_of, sync_folder, write_json
from cascaded_diffusion.reading.plain import refuse_outside
from cascaded_diffusion.reading.torch_file import TORCH_DAMAGE, check_torch_file
from cascaded_diffusion.training.snapshots import is_length, power_weights
from cascaded_diffusion.writing import write_tensors

__all__ = [
    "Whole",
    "averaged_weights",
    "checkpoint_folders",
    "ema_file",
    "find_checkpoint",
    "load_optimizer",
    "newest_whole",
    "prune",
    "read_checkpoint",
    "remove_leftovers",
    "set_aside",
    "write_checkpoint",
]

_LOG = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.pt"
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_NAME = re.compile("[0-9]{1,18}")
_LONGEST_NAME = 255  # bytes; no file system here takes a longer one, and asking for it is an error of the system's
_MOMENTS, _TENSOR_OVERHEAD, _FILE_OVERHEAD = 2, 2048, 2**20
"""What Adam keeps of each parameter in float32, and the most bytes that names add for each tensor and for the file."""


def ema_file(average: int | str) -> str:
    """File name of one average's weights: of a half-life, or of a power-function average by name."""
    return f"ema-{average}.safetensors"


def checkpoint_folders(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


def _remove(folder: Path) -> None:
    """Delete a checkpoint under another name: one that is half deleted must not look like a checkpoint."""
    doomed = folder.with_name(f".deleting-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(run: Path) -> None:
    """Delete what a process left that died while it wrote or deleted a checkpoint."""
    parent = run / "checkpoints"
    for pattern in (".writing-*", ".deleting-*"):
        for leftover in parent.glob(pattern):
            shutil.rmtree(leftover)


class _Sink(io.FileIO):
    """A file that remembers why a write failed: torch tells only that one did."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.problem = error
            raise
        return len(memoryview(data).cast("B"))


def _save_optimizer(optimizer: Mapping[str, Any], path: Path) -> None:
    with _Sink(path, "w") as file:
        try:
            torch.save(dict(optimizer), file)
            os.fsync(file.fileno())
        except RuntimeError:
            if file.problem is None:
                raise
            raise file.problem from None


def _write_files(
    folder: Path,
    weights: Mapping[str, Tensor],
    averages: Mapping[int | str, Mapping[str, Tensor]],
    optimizer: Mapping[str, Any],
) -> dict[str, str]:
    """Write everything but the manifest, see that it is on disk, and read it back: name to SHA-256."""
    write_tensors(weights, folder / WEIGHTS)
    for half_life, average in averages.items():
        write_tensors(average, folder / ema_file(half_life))
    _save_optimizer(optimizer, folder / OPTIMIZER)
    names = [WEIGHTS, *map(ema_file, averages), OPTIMIZER]
    return {name: sha256_of(folder / name) for name in names}


def write_checkpoint(
    run: Path,
    images: int,
    *,
    weights: Mapping[str, Tensor],
    averages: Mapping[int | str, Mapping[str, Tensor]],
    optimizer: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Path:
    """Write checkpoint ``images``; it exists under its name only when it is whole.

    Args:
        run: the run folder.
        images: images seen, the folder's name.
        weights: the network's.
        averages: for each half-life, and each power-function average by name, the averaged weights.
        optimizer: its state dict.
        extra: small facts for the manifest.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    parent = run / "checkpoints"
    if not parent.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        sync_folder(run)
    remove_leftovers(run)
    temporary = parent / f".writing-{images:012d}"
    try:
        temporary.mkdir()
        hashes = _write_files(temporary, weights, averages, optimizer)
        # Flushes the folder with all its entries, too.
        write_json(temporary / MANIFEST, {"format_version": FORMAT_VERSION, "images": images, **extra, "files": hashes})
        final = parent / f"{images:012d}"
        if final.exists():
            _remove(final)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(parent)
    return final


class Whole(NamedTuple):
    """A checkpoint whose files have been checked, and its manifest."""

    folder: Path
    manifest: dict[str, Any]


def newest_whole(run: Path) -> tuple[Whole | None, list[Path]]:
    """The newest checkpoint that is not damaged, and the damaged ones that are newer; each of these is told of.

    Raises:
        UserError: there are checkpoints, and all of them are damaged. Nothing is changed.
    """
    damaged: dict[Path, str] = {}
    for folder in reversed(checkpoint_folders(run)):
        try:
            found = Whole(folder, read_checkpoint(folder))
        except UserError as error:
            damaged[folder] = str(error)
            continue
        for problem in damaged.values():
            _LOG.warning("%s; the checkpoint at %d images is used instead", problem, int(folder.name))
        return found, list(damaged)
    if damaged:
        first = next(iter(damaged.values()))
        raise UserError(
            f"{run}: none of its {len(damaged)} checkpoints is whole ({first}); nothing was changed. Put one back from "
            f"a copy, or remove {run / 'checkpoints'} to start anew"
        )
    return None, []


def set_aside(folder: Path) -> Path:
    """Keep a damaged checkpoint under a name that is not a checkpoint's."""
    names = (f".damaged-{folder.name}{suffix}" for suffix in ("", *(f".{i}" for i in range(2, 1000))))
    aside = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
    folder.rename(aside)
    _LOG.warning("%s: damaged, kept as %s", folder, aside.name)
    return aside


def prune(run: Path, keep: int | None, known: set[Path] | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints that are whole; damaged ones among them are put aside.

    Args:
        run: the run folder.
        keep: how many; ``None`` for all.
        known: those known to be whole; the others are read to find out, and added.
    """
    if keep is None:
        return
    known = set() if known is None else known
    left = keep
    for folder in reversed(checkpoint_folders(run)):
        if not left:
            _remove(folder)
            continue
        try:
            if folder not in known:
                read_checkpoint(folder)
                known.add(folder)
            left -= 1
        except UserError as error:
            _LOG.warning("%s", error)
            set_aside(folder)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Check a checkpoint's files against its manifest and return the manifest; ``UserError`` names what is damaged."""
    refuse_outside(folder.parent.parent, folder / MANIFEST)
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or type(manifest.get("images")) is not int:
        raise UserError(f"{folder / MANIFEST}: not a checkpoint's manifest")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise UserError(f"{folder / MANIFEST}: format_version {version!r} cannot be read; allowed: {FORMAT_VERSION}")
    if folder.name.isdigit() and int(folder.name) != manifest["images"]:
        raise UserError(f"{folder / MANIFEST}: of another checkpoint, the one at {manifest['images']} images")
    for name in (WEIGHTS, OPTIMIZER):
        if name not in files:
            raise UserError(f"{folder / MANIFEST}: {name} is not in its list of files")
    for name, expected in files.items():
        path = folder / name
        if len(name.encode()) > _LONGEST_NAME or Path(name).name != name or not path.is_file():
            raise UserError(f"{folder / name[:_LONGEST_NAME]}: missing from the checkpoint")
        refuse_outside(folder.parent.parent, path)
        try:
            found = sha256_of(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if found != expected:
            raise UserError(f"{path}: damaged (its SHA-256 is not the manifest's)")
    return dict(manifest)


def load_optimizer(folder: Path, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The optimizer's state of a checkpoint whose hashes have been checked.

    Args:
        folder: the checkpoint.
        parameters: what is optimized, in order.

    Raises:
        UserError: the file is larger than Adam's two moments of these parameters can make it, damaged, or not theirs.
    """
    path = folder / OPTIMIZER
    moments = sum(_MOMENTS * 4 * parameter.numel() + _TENSOR_OVERHEAD for parameter in parameters)
    check_torch_file(path, moments + _FILE_OVERHEAD, "not an optimizer's state")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except TORCH_DAMAGE as error:
        line = first_line(error)
        raise UserError(f"{path}: not an optimizer's state ({line})") from None
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict) or "param_groups" not in state:
        raise UserError(f"{path}: not an optimizer's state (no state and param_groups in it)")
    for position, moments_of in state["state"].items():
        known = isinstance(position, int) and 0 <= position < len(parameters) and isinstance(moments_of, dict)
        shapes = [(), tuple(parameters[position].shape)] if known else []
        if not known or not all(isinstance(m, Tensor) and tuple(m.shape) in shapes for m in moments_of.values()):
            raise UserError(f"{path}: its moments are not those of this network's parameters")
    return state


def find_checkpoint(run: Path, images: int | None = None) -> Path:
    """The newest checkpoint that is whole, or the one at exactly ``images``; ``UserError`` lists those there are."""
    folders = checkpoint_folders(run)
    if not folders:
        raise UserError(f"{run}: no checkpoint; train the stage first")
    if images is None:
        newest, _ = newest_whole(run)
        assert newest is not None  # there are some, and if all of them were damaged it has said so
        return newest.folder
    for folder in folders:
        if int(folder.name) == images:
            return folder
    raise UserError(
        f"--checkpoint: no checkpoint at {images} images; allowed: {', '.join(str(int(f.name)) for f in folders)}"
    )


def averaged_weights(folder: Path, ema: str | None) -> tuple[dict[str, Tensor], str]:
    """The weights to sample with, and which they are.

    Args:
        folder: the checkpoint.
        ema: a half-life in images, the relative length of a power-function average, ``raw``, or the default.
    """
    manifest = read_checkpoint(folder)
    half_lives = manifest.get("ema_half_lives", [])
    if not isinstance(half_lives, list) or not all(type(half_life) is int for half_life in half_lives):
        raise UserError(f"{folder / MANIFEST}: ema_half_lives is {half_lives!r}, not a list of whole numbers")
    default = str(half_lives[0]) if half_lives else "raw"
    choice = default if ema is None else ema
    if choice == "raw":
        return load_weights(folder / WEIGHTS), "raw"
    if is_length(choice):
        return power_weights(folder, manifest, float(choice)), f"{float(choice):g}"
    if choice not in map(str, half_lives):
        raise UserError(f"--ema: {choice!r} is not kept by this run; allowed: {', '.join(map(str, half_lives))}, raw")
    return load_weights(folder / ema_file(int(choice))), choice
