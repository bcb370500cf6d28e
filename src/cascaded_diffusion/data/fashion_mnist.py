"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), and any folder of four IDX files named like it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from cascaded_diffusion.cache import cache_folder
from cascaded_diffusion.data.pixels import Pixels, zero_pad
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import atomic_write
from cascaded_diffusion.reading.archive import refuse_bomb
from cascaded_diffusion.reading.plain import open_file

__all__ = [
    "ALLOWED_RESOLUTIONS",
    "CLASS_NAMES",
    "PADDING_RULE",
    "IdxData",
    "holds_idx_files",
    "load_fashion_mnist",
    "load_idx_folder",
]

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ALLOWED_RESOLUTIONS = (1, 2, 4, 8, 16, 32)
PADDING_RULE = "28x28 zero-padded to 32x32, 2 pixels a side; no crop"

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Hashes of the unpacked files: packers store a date and a name in a .gz, so the packed ones differ from place to place.
CONTENT_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SIDE, MARGIN = 28, 2
MAX_IMAGES = 1_000_000  # 0.8 GB of pixels: more than any data set of this form, less than would hurt
MAX_DOWNLOAD = 64 * 2**20
TIMEOUT_S = 60.0
REMEDY = "install the Debian package dataset-fashion-mnist, or give a folder that holds the four IDX files"


class IdxData(NamedTuple):
    """Images (N, 32, 32, 1) and labels (N,) of both splits, train first."""

    images: Pixels
    labels: npt.NDArray[np.int64]
    train_count: int
    class_names: list[str]


def holds_idx_files(folder: Path) -> bool:
    """Whether ``folder`` holds all four IDX files, packed (``.gz``) or not."""
    return all(_idx_path(folder, stem) is not None for stem in CONTENT_SHA256)


def load_idx_folder(folder: Path) -> IdxData:
    """Read the four IDX files of ``folder``.

    Several data sets use these four names (MNIST does). The garments' names are given only to files whose content is
    Fashion-MNIST's; the classes of others are called by their numbers.
    """
    contents = {}
    for stem in CONTENT_SHA256:
        path = _idx_path(folder, stem)
        if path is None:
            raise UserError(f"{folder}: no {stem}, with or without .gz; all of {', '.join(CONTENT_SHA256)} are needed")
        contents[stem] = (path, _unpack(path))
    genuine = all(_sha256(content) == CONTENT_SHA256[stem] for stem, (_, content) in contents.items())
    return _assemble(contents, list(CLASS_NAMES) if genuine else None)


def load_fashion_mnist(note: Callable[[str], None]) -> IdxData:
    """Read Fashion-MNIST from the Debian package's folder, else the user's cache, else its official address."""
    contents = {}
    for stem, expected in CONTENT_SHA256.items():
        installed = DEBIAN_FOLDER / f"{stem}.gz"
        path = installed if installed.is_file() else _cached(stem, note)
        content = _unpack(path)
        if _sha256(content) != expected:
            found = f"unpacked, its SHA-256 is {_sha256(content)}, not {expected}"
            raise UserError(f"{path}: not Fashion-MNIST's {stem} ({found})")
        contents[stem] = (path, content)
    return _assemble(contents, list(CLASS_NAMES))


def _assemble(contents: dict[str, tuple[Path, bytes]], class_names: list[str] | None) -> IdxData:
    images, labels = [], []
    for split in ("train", "t10k"):
        pixels_path, pixels = contents[f"{split}-images-idx3-ubyte"]
        labels_path, classes = contents[f"{split}-labels-idx1-ubyte"]
        images.append(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, SIDE, SIDE, 1))
        labels.append(np.frombuffer(classes, np.uint8, offset=8).astype(np.int64))
        if len(images[-1]) != len(labels[-1]):
            numbers = f"{len(labels[-1])} labels for the {len(images[-1])} images"
            raise UserError(f"{labels_path}: {numbers} of {pixels_path.name}")
    every_label = np.concatenate(labels)
    highest = int(every_label.max())
    names = class_names or [str(number) for number in range(highest + 1)]
    if highest >= len(names):
        raise UserError(f"{labels_path.parent}: its label files hold {highest}; the highest class is {len(names) - 1}")
    return IdxData(zero_pad(np.concatenate(images), MARGIN), every_label, len(labels[0]), names)


def _idx_path(folder: Path, stem: str) -> Path | None:
    candidates = (folder / f"{stem}.gz", folder / stem)
    return next((path for path in candidates if path.is_file()), None)


def _unpack(path: Path, packed: IO[bytes] | None = None) -> bytes:
    """Content of one IDX file, checked as it is read; with ``packed`` it is read from there and only named ``path``."""
    try:
        with packed or open_file(path) as file:
            if path.suffix != ".gz":
                return _read_idx(file, path, None)
            _check_gzip_names(file)
            held = file.seek(0, os.SEEK_END)
            file.seek(0)
            return _read_idx(gzip.GzipFile(fileobj=file), path, held)
    except UserError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: unreadable IDX file ({error})") from None


def _check_gzip_names(file: IO[bytes]) -> None:
    """Refuse a name or comment without end in a gzip header, over which Python goes byte by byte."""
    head = file.read(2**17)
    flags, at = (head[3], 10) if len(head) > 12 else (0, 0)
    if flags & 4:
        at += 2 + int.from_bytes(head[10:12], "little")
    for bit in (8, 16):
        if flags & bit:
            at = head.find(b"\0", at) + 1
            if not at:
                raise EOFError("a name in its gzip header has no end")


def _read_idx(file: IO[bytes] | gzip.GzipFile, path: Path, packed: int | None) -> bytes:
    """The content of an IDX file; ``packed`` are the bytes that it was packed into, if it was."""
    of_images = "images" in path.name
    magic, dimensions = (0x803, 3) if of_images else (0x801, 1)
    header = file.read(4 + 4 * dimensions)
    if len(header) != 4 + 4 * dimensions or struct.unpack(">I", header[:4])[0] != magic:
        kind = "images" if of_images else "labels"
        raise UserError(f"{path}: not an IDX file of {kind} (it must begin with {magic:#010x})")
    count, *shape = struct.unpack(f">{dimensions}I", header[4:])
    if of_images and shape != [SIDE, SIDE]:
        raise UserError(f"{path}: images of {shape[0]}x{shape[1]}; IDX images must be {SIDE}x{SIDE}")
    if not 1 <= count <= MAX_IMAGES:
        raise UserError(f"{path}: its header claims {count} entries; 1 to {MAX_IMAGES} are read")
    expected = count * (SIDE * SIDE if of_images else 1)
    if packed is not None:
        refuse_bomb(str(path), packed, expected)
        if packed > expected + expected // 256 + 2**18:  # the rest would be gone through too, zero by zero
            raise UserError(f"{path}: {packed} bytes for the {expected} that its header claims")
    body = bytearray()
    while len(body) <= expected and (block := file.read(min(2**20, expected + 1 - len(body)))):
        body += block  # grows with what is really there, never with what the header claims
    if len(body) != expected:
        found = "more" if len(body) > expected else str(len(body))
        raise UserError(f"{path}: its header claims {expected} bytes after it, the file has {found}")
    return header + bytes(body)


def _cached(stem: str, note: Callable[[str], None]) -> Path:
    """Path of a file in the user's cache, downloaded if it is not there or not intact."""
    path = cache_folder() / "fashion-mnist" / f"{stem}.gz"
    if path.is_file():
        try:
            if _sha256(_unpack(path)) == CONTENT_SHA256[stem]:
                return path
        except UserError:
            pass
        note(f"{path}: damaged, downloading it again")
    url = f"{BASE_URL}{stem}.gz"
    note(f"downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            packed = response.read(MAX_DOWNLOAD + 1)
    except OSError as error:
        raise UserError(f"fashion-mnist: cannot download {url} ({error}); {REMEDY}") from None
    found = _sha256(_unpack(path, io.BytesIO(packed)))
    if found != CONTENT_SHA256[stem]:
        wrong = f"unpacked, its SHA-256 is {found}, not {CONTENT_SHA256[stem]}"
        raise UserError(f"fashion-mnist: {url} gave a wrong file ({wrong}); {REMEDY}")
    with atomic_write(path) as file:
        file.write(packed)
    return path


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
