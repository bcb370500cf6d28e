"""Snapshots of power-function averages along a run, and averages of any length made of them.

``RUN/snapshots/IMAGES/`` holds the averages as safetensors and a manifest with their hashes, and exists only when it is
whole. A run that resumes drops those that are newer than its checkpoint: it makes the very same again.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import read_json, sha256_of, sync_folder, write_json
from cascaded_diffusion.reading.plain import refuse_outside
from cascaded_diffusion.reading.tensors import read_tensors
from cascaded_diffusion.training.power_ema import WIDEST, Profile, gamma_of, power_name, reconstruct
from cascaded_diffusion.writing import write_tensors

__all__ = ["drop_snapshots_after", "is_length", "power_weights", "write_snapshot"]

_LOG = logging.getLogger(__name__)

FOLDER = "snapshots"
MANIFEST = "manifest.json"
_DOUBTFUL, _USELESS = 0.01, 0.1
"""Relative errors of a profile from which it is told of, and refused."""


def is_length(ema: str) -> bool:
    """Whether an average is asked for by its relative length, such as ``0.05``, not by a half-life."""
    return re.fullmatch(r"0?\.\d{1,9}", ema) is not None


def _folders(run: Path) -> list[Path]:
    parent = run / FOLDER
    found = parent.iterdir() if parent.is_dir() else ()
    ours = (path for path in found if re.fullmatch(r"[0-9]{1,18}", path.name))
    return sorted(path for path in ours if path.is_dir() and not path.is_symlink())


def write_snapshot(run: Path, images: int, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the averages after ``images``, name to weights; after an ``OSError`` nothing of them stays."""
    parent = run / FOLDER
    parent.mkdir(exist_ok=True)
    temporary = parent / f".writing-{images:012d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        hashes = {}
        for name, weights in averages.items():
            path = temporary / f"{name}.safetensors"
            write_tensors(weights, path)
            hashes[path.name] = sha256_of(path)
        write_json(temporary / MANIFEST, {"format_version": 1, "images": images, "files": hashes})
        final = parent / f"{images:012d}"
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(parent)


def drop_snapshots_after(run: Path, images: int) -> None:
    """Delete snapshots that are newer than ``images``, and what was not written to its end."""
    for folder in _folders(run):
        if int(folder.name) > images:
            shutil.rmtree(folder)
    for leftover in (run / FOLDER).glob(".writing-*"):
        shutil.rmtree(leftover)


def _hashes(folder: Path) -> dict[str, str]:
    manifest: Any = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("images") != int(folder.name):
        raise UserError(f"{folder / MANIFEST}: not a snapshot's manifest")
    return {str(name): str(value) for name, value in files.items()}


def _read(folder: Path, name: str, hashes: Mapping[str, str]) -> dict[str, Tensor]:
    """A file of weights whose hash is checked."""
    path = folder / name
    refuse_outside(folder.parent.parent, path)
    if name not in hashes or not path.is_file():
        raise UserError(f"{path}: missing from the snapshot")
    if sha256_of(path) != hashes[name]:
        raise UserError(f"{path}: damaged (its SHA-256 is not the manifest's)")
    return read_tensors(path)


def power_weights(checkpoint: Path, manifest: Mapping[str, Any], sigma_rel: float) -> dict[str, Tensor]:
    """The power-function average of a checkpoint of relative length ``sigma_rel``, tracked or reconstructed.

    Args:
        checkpoint: the folder.
        manifest: its content, its files' hashes checked.
        sigma_rel: in (0, 0.288].

    Raises:
        UserError: the run keeps no such averages, a snapshot is damaged, or they do not give this length.
    """
    kept = manifest.get("power_ema") or []
    if not isinstance(kept, list) or not kept or not all(isinstance(value, float) for value in kept):
        raise UserError(f"--ema: {sigma_rel:g} needs a run with training.power_ema; this one keeps half-lives alone")
    if not 0 < sigma_rel <= WIDEST:
        raise UserError(f"--ema: {sigma_rel:g} is not a relative length; allowed: above 0, up to {WIDEST}")
    own = {f"ema-{power_name(value)}.safetensors": value for value in kept}
    for name, value in own.items():
        if value == sigma_rel:
            return _read(checkpoint, name, manifest["files"])
    images = int(manifest["images"])
    sources = [(Profile(images, gamma_of(value)), checkpoint, name, manifest["files"]) for name, value in own.items()]
    for folder in _folders(checkpoint.parent.parent):
        if 0 < int(folder.name) < images:
            hashes = _hashes(folder)
            sources += [
                (Profile(int(folder.name), gamma_of(value)), folder, f"{power_name(value)}.safetensors", hashes)
                for value in kept
                if f"{power_name(value)}.safetensors" in hashes  # a length may have been asked for later
            ]
    coefficients, error = reconstruct([source[0] for source in sources], Profile(images, gamma_of(sigma_rel)))
    told = f"{len(sources)} averages of the run give a length of {sigma_rel:g} with an error of {100 * error:.2g} %"
    if error > _USELESS:
        raise UserError(f"--ema: {told}; allowed: up to {100 * _USELESS:g} %, nearer to {', '.join(map(str, kept))}")
    if error > _DOUBTFUL:
        _LOG.warning("%s", told)
    total: dict[str, Tensor] = {}
    for coefficient, (_, folder, name, hashes) in zip(coefficients, sources, strict=True):
        for key, value in _read(folder, name, hashes).items():
            # Coefficients of both signs cancel; float64 keeps what is left.
            part = value.to(torch.float64) * coefficient
            total[key] = part if key not in total else total[key] + part
    return {key: value.float() for key, value in total.items()}
