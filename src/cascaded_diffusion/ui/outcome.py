"""What a run leaves behind: its images as files to download, and pictures of them to look at."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cascaded_diffusion.files import atomic_write
from cascaded_diffusion.pictures import save_png, tile, to_picture
from cascaded_diffusion.samples import class_folder, write_npz

__all__ = ["Files", "across", "caption", "sheet", "write_files"]

_SHEET = 768
"""Pixels a side of a sheet of images, about."""


@dataclass(frozen=True)
class Files:
    """The files of one run: each image as PNG, all of them in one archive, and the array."""

    pngs: tuple[Path, ...]
    archive: Path
    array: Path


def across(count: int) -> int:
    """Images in a row, at most six: about a square, and few places left empty."""
    square = math.ceil(math.sqrt(count))
    return min(range(square, square + 2), key=lambda n: (-count % n, n)) if square < 6 else 6


def caption(label: int, class_names: Sequence[str]) -> str:
    """A class in words; nothing for -1."""
    return class_names[label] if label >= 0 else ""


def write_files(folder: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Files:
    """Write a run's files into ``folder``, whose earlier content goes.

    Args:
        folder: of the run.
        images: uint8 (N, H, W, C).
        labels: int64 (N,), -1 without classes.
        class_names: what to call the classes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pngs = []
    archive, array = folder / "images.zip", folder / "samples.npz"
    write_npz(array, images, labels)
    with atomic_write(archive) as file, zipfile.ZipFile(file, "w") as whole:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = class_folder(caption(label, class_names)) if label >= 0 else ""
            png = folder / "png" / f"{f'{name}-' if name else ''}{i:06d}.png"
            save_png(to_picture(image), png)
            whole.write(png, f"{name}/{i:06d}.png" if name else f"{i:06d}.png")
            pngs.append(png)
    return Files(tuple(pngs), archive, array)


def sheet(images: np.ndarray) -> Image.Image:
    """All images (N, H, W, C) as one picture, small ones enlarged pixel by pixel."""
    columns = across(len(images))
    side = images.shape[1]
    scale = max(1, _SHEET // (columns * side))
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    gap = 0 if len(images) == 1 else max(2, large.shape[1] // 32)
    return to_picture(tile(large, columns, gap=gap, background=235)).convert("RGB")
