"""Small images that a person gives to be enlarged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.data.archive import open_archive
from cascaded_diffusion.data.decoding import decode
from cascaded_diffusion.data.folder import is_image, list_images
from cascaded_diffusion.data.pixels import Pixels, area_resize, centre_square
from cascaded_diffusion.data.sources import Bad
from cascaded_diffusion.errors import UserError

__all__ = ["GivenImages", "read_given_images"]


class GivenImages(NamedTuple):
    """uint8 (N, r, r, C), and their labels if an ``.npz`` has them."""

    images: Pixels
    labels: npt.NDArray[np.int64] | None


def read_given_images(path: Path, side: int, channels: int) -> GivenImages:
    """Read one image, a folder of images or an ``.npz``, cropped to the centre square and area-averaged to ``side``.

    A folder holds images, or folders of them, which are read one after the other; their names are no labels.

    Raises:
        UserError: a file that cannot be read, an image smaller than ``side``, or a folder with images both directly
            and in folders; each is named.
    """
    if path.suffix == ".npz":
        return _from_archive(path, side, channels)
    files = _files(path)
    if not files:
        raise UserError(f"--from-images: {path} is neither an image, a folder of images nor an .npz")
    rows = []
    for file in files:
        pixels = decode(file, channels)
        if isinstance(pixels, Bad):
            raise UserError(f"{file}: {pixels.reason}")
        rows.append(_fitted(pixels[None], side, file))
    return GivenImages(np.concatenate(rows), None)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [path / name for _, name in list_images(path, "", []).images]
    return [path] if path.is_file() and is_image(path.name) and not path.name.startswith(".") else []


def _from_archive(path: Path, side: int, channels: int) -> GivenImages:
    if not path.is_file():
        raise UserError(f"--from-images: {path}: no such file")
    with tempfile.TemporaryDirectory() as scratch:
        source = open_archive(path, Path(scratch))
        reader, count = source.reader, len(source.items)
        given = 1 if source.facts is not None and source.facts.grey else 3
        if given != channels:
            raise UserError(f"{path}: {given} image channels; allowed here: {channels}")
        # In parts: small as the images become, what they are cut from need not fit into memory.
        parts = [
            _fitted(stack, side, path)
            for start in range(0, count, reader.chunk)
            for stack in reader.read(range(start, min(start + reader.chunk, count)), channels)
            if not isinstance(stack, Bad)
        ]
    labels = None if source.class_names is None else np.array([item.label for item in source.items], np.int64)
    return GivenImages(np.concatenate(parts), labels)


def _fitted(images: Pixels, side: int, path: Path) -> Pixels:
    square = centre_square(images)
    if square.shape[1] < side:
        raise UserError(f"{path}: {square.shape[1]} pixels a side; at least {side} are needed to start from")
    return area_resize(square, side)
