"""Samples on disk: an ``.npz`` that evaluation suites read, or a folder of PNG files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from cascaded_diffusion.files import atomic_write, new_folder
from cascaded_diffusion.pictures import save_png, to_picture

__all__ = ["ManyImages", "class_folder", "png_names", "to_rgb", "write_npz", "write_png_folder"]


class ManyImages(Protocol):
    """uint8 images (N, H, W, C) to iterate over once: an array, or what reads them from a disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...


_LONGEST_NAME = 200  # bytes; file systems take 255


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Grey (N, H, W, 1) as three equal channels; colour as it is."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def write_npz(path: Path, images: ManyImages, labels: np.ndarray) -> None:
    """Write the form that the ADM evaluation suite reads.

    That is ``arr_0`` uint8 (N, H, W, C) and ``arr_1`` int64 (N,), -1 without classes; the very file that ``np.savez``
    writes, but the images need not all be in memory.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for image in images:
                member.write(np.ascontiguousarray(image, np.uint8).tobytes())
        with archive.open("arr_1.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, labels, allow_pickle=False)


def class_folder(name: str) -> str:
    """A class's name as one path component: what a file system would stumble over becomes ``-``."""
    short = re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]+', "-", name).encode(errors="replace")[:_LONGEST_NAME]
    return short.decode(errors="ignore").strip(" .") or "class"


def png_names(labels: np.ndarray, class_names: Sequence[str] | None, mark: str = "") -> list[str]:
    """Path of each sample's file in :func:`write_png_folder`."""
    folders = [
        class_folder(class_names[label] if class_names else str(label)) if label >= 0 else "" for label in labels
    ]
    return [f"{folder}/{i:06d}{mark}.png".removeprefix("/") for i, folder in enumerate(folders)]


def write_png_folder(
    folder: Path, images: ManyImages, labels: np.ndarray, class_names: Sequence[str] | None, *, mark: str = ""
) -> None:
    """Write ``CLASSNAME/INDEX.png``, or ``INDEX.png`` without classes; ``mark`` is added to every file's name.

    The folder appears when all of its files are whole.

    Raises:
        UserError: the folder holds something already, which new samples must not be mixed with.
    """
    with new_folder(folder) as made:
        for image, name in zip(images, png_names(labels, class_names, mark), strict=True):
            save_png(to_picture(image), made / name)
