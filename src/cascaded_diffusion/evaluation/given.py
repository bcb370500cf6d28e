"""Samples that came from anywhere, as an ``.npz`` file, and how they are made comparable with prepared data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.data.archive import open_archive
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import sha256_of

__all__ = ["GivenSamples", "SameChannels", "read_samples", "same_channels"]

_BLOCK = 1024


class GivenSamples(NamedTuple):
    """The content of a samples file.

    Attributes:
        images: uint8 (N, R, R, C), mapped into memory, C 1 or 3.
        labels: int64 (N,), -1 without classes.
        name: the file's name.
        sha256: hexadecimal SHA-256 of the file.
    """

    images: np.ndarray
    labels: npt.NDArray[np.int64]
    name: str
    sha256: str


@contextmanager
def read_samples(path: Path) -> Iterator[GivenSamples]:
    """Open a samples file; the images are there for the length of the block.

    The file holds uint8 images (N, R, R, C) or (N, R, R) as ``arr_0`` or ``images``, and may hold labels as ``arr_1``
    or ``labels``: whole numbers (N,), all -1 where there are none, or one-hot rows (N, K). Nothing in it is
    unpickled.

    Raises:
        UserError: no such file, not such a file, or images that are not square.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with tempfile.TemporaryDirectory(prefix="samples-") as folder:
        source = open_archive(path, Path(folder))
        images = np.load(Path(folder) / "pixels.npy", mmap_mode="r", allow_pickle=False)
        if images.shape[1] != images.shape[2]:
            raise UserError(f"{path}: images of {images.shape[2]}x{images.shape[1]} pixels; give square ones")
        labels = np.array([item.label for item in source.items], np.int64)
        yield GivenSamples(images, labels, path.name, sha256_of(path))


class SameChannels(NamedTuple):
    """Images with the data's channels, how they came by them, and why that may be wrong, or nothing."""

    images: np.ndarray
    words: str
    warning: str


def same_channels(images: np.ndarray, channels: int) -> SameChannels:
    """Samples with as many channels as the data has.

    Grey becomes three equal channels. Three equal channels become one; three that differ become their mean, which hides
    colours from every score and is therefore warned of.

    Args:
        images: uint8 (N, R, R, 1 or 3).
        channels: of the data, 1 or 3.
    """
    names = {1: "grey", 3: "colour"}
    given, wanted = names[images.shape[3]], names[channels]
    if given == wanted:
        return SameChannels(images, f"samples and real images are {wanted}", "")
    if channels == 3:
        repeated = np.broadcast_to(images, (*images.shape[:3], 3))
        return SameChannels(repeated, "grey samples, repeated to the three channels of real images", "")
    grey = np.empty((*images.shape[:3], 1), np.uint8)
    equal = True
    for start in range(0, len(images), _BLOCK):
        block = np.asarray(images[start : start + _BLOCK])
        equal = equal and bool((block == block[..., :1]).all())
        grey[start : start + _BLOCK] = block.mean(axis=3, keepdims=True).round().astype(np.uint8)
    if equal:
        return SameChannels(grey, "samples have three equal channels, of which one is compared with grey images", "")
    words = "colour samples, whose channels are averaged to compare with grey images"
    return SameChannels(grey, words, "samples have colours and real images have none: no score sees the colours")
