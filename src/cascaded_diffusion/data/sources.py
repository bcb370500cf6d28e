"""Where images come from: one interface for folders, archives and packaged data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from cascaded_diffusion.data.fashion_mnist import (
    ALLOWED_RESOLUTIONS,
    PADDING_RULE,
    IdxData,
    holds_idx_files,
    load_fashion_mnist,
    load_idx_folder,
)
from cascaded_diffusion.data.pixels import CROP_RULE, Pixels
from cascaded_diffusion.errors import UserError

__all__ = ["FASHION_MNIST", "PACKAGED", "ArrayReader", "Bad", "Facts", "Item", "Key", "Reader", "Source", "open_source"]

FASHION_MNIST = "fashion-mnist"
PACKAGED = frozenset({FASHION_MNIST})  # names that win over files and folders called so
Key = str | int


class Bad(NamedTuple):
    """An image that cannot be read, and why."""

    reason: str


class Facts(NamedTuple):
    """What a look at an image's header tells: its size in pixels, whether it is grey, the hash of its content."""

    height: int
    width: int
    grey: bool
    digest: bytes | None


class Reader(Protocol):
    """Reads images by key; small and picklable, so that it can be sent to worker processes."""

    @property
    def chunk(self) -> int:
        """How many images make a task of sensible size and memory."""

    def name(self, key: Key) -> str:
        """What to call the image in a message."""

    def look(self, keys: Sequence[Key], *, with_digest: bool) -> list[Facts | Bad]:
        """Facts about the images of ``keys`` in order, without decoding their pixels."""

    def read(self, keys: Sequence[Key], channels: int) -> Iterator[Pixels | Bad]:
        """Stacks (N, H, W, channels) that hold the images of ``keys`` in order; a ``Bad`` for each unreadable one."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source: its key for the reader, its class (-1 without classes), its split if it has one."""

    key: Key
    label: int
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """All images of one source, in its own order, and what is known of them before any is read."""

    name: str
    reader: Reader
    items: list[Item]
    class_names: list[str] | None
    fingerprint: str  # SHA-256 over names and sizes, or over the check sums of an archive
    split_rule: str | None = None  # in words, if the source brings its own splits
    crop_rule: str = CROP_RULE
    facts: Facts | None = None  # if all images are alike
    resolutions: tuple[int, ...] | None = None  # the only ones allowed
    ignored: list[str] | None = None  # files of a folder that are no images


def open_source(source: str, scratch: Path, note: Callable[[str], None]) -> Source:
    """Find out what ``source`` names and list its images.

    ``scratch`` is a folder for unpacked pixels, needed as long as the images are read.
    """
    if source == FASHION_MNIST:
        if Path(source).exists():
            note(f"{source}: the packaged data set is used, not what has this name here (write ./{source} for that)")
        return _idx_source(FASHION_MNIST, load_fashion_mnist(note), scratch)
    path = Path(source)
    if path.is_dir():
        if holds_idx_files(path):
            return _idx_source(path.resolve().name, load_idx_folder(path), scratch)
        from cascaded_diffusion.data.folder import open_folder
        from cascaded_diffusion.data.imagenet import find_imagenet, open_imagenet

        layout = find_imagenet(path)
        return open_folder(path) if layout is None else open_imagenet(layout, note)
    if path.is_file() and path.suffix.lower() == ".npz":
        from cascaded_diffusion.data.archive import open_archive

        return open_archive(path, scratch)
    found = "neither a folder nor an .npz file" if path.exists() else "no such file or folder"
    raise UserError(f"{source}: {found}; give {_FORMS}")


_FORMS = "fashion-mnist, a folder of class folders, a folder of images, a file.npz, hf:NAME or wds:PATTERN"


def _idx_source(name: str, data: IdxData, scratch: Path) -> Source:
    pixels = scratch / "pixels.npy"
    np.save(pixels, data.images)
    labels = data.labels.tolist()
    height, width = data.images.shape[1:3]
    return Source(
        name=name,
        reader=ArrayReader(pixels, name),
        items=[Item(i, label, "train" if i < data.train_count else "val") for i, label in enumerate(labels)],
        class_names=data.class_names,
        fingerprint=hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest(),
        split_rule=f"the {name} files' own train and test parts",
        crop_rule=PADDING_RULE,
        facts=Facts(height, width, True, None),
        resolutions=ALLOWED_RESOLUTIONS,
    )


@dataclass(frozen=True)
class ArrayReader:
    """Images of one size in a ``.npy`` file, uint8 (N, H, W, C), mapped into memory; keys are indices."""

    path: Path
    source: str

    @property
    def chunk(self) -> int:
        """Some 16 MB of pixels, at most 256 images."""
        return max(1, min(256, 2**24 // int(self._images()[0].size)))

    def name(self, key: Key) -> str:
        """The source's name and the image's index."""
        return f"{self.source}: image {key}"

    def look(self, keys: Sequence[Key], *, with_digest: bool) -> list[Facts | Bad]:
        """Facts about the images; their digests are those of their pixels."""
        images = self._images()
        height, width, channels = images.shape[1:]
        digests = [hashlib.sha256(images[int(key)].tobytes()).digest() if with_digest else None for key in keys]
        return [Facts(height, width, channels == 1, digest) for digest in digests]

    def read(self, keys: Sequence[Key], channels: int) -> Iterator[Pixels | Bad]:
        """All images of ``keys`` in one stack."""
        yield self._images()[np.array(keys, np.int64)]

    def _images(self) -> Pixels:
        # Mapped anew for every task and never kept: the next run may put another file under this name.
        images: Pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return images
