"""Small folders and files to prepare."""

from __future__ import annotations

import filecmp
import gzip
import io
import struct
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Picture = Callable[..., np.ndarray]


@pytest.fixture
def picture() -> Picture:
    """Reproducible noise, uint8 (height, width, 3) or, with channels=1, (height, width)."""

    def make(seed: int, height: int = 20, width: int = 20, channels: int = 3) -> np.ndarray:
        shape = (height, width) if channels == 1 else (height, width, channels)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def class_folder(tmp_path: Path, picture: Picture) -> Path:
    """Three classes of 4, 3 and 2 PNGs of different sizes, all at least 16 pixels a side."""
    root = tmp_path / "pictures"
    for label, (name, count) in enumerate([("ant", 4), ("bee", 3), ("cat", 2)]):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = picture(10 * label + i, 16 + i, 20 - label)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def mixed_folder(tmp_path: Path, picture: Picture) -> Path:
    """64 images in two classes, of every kind of file, in sizes from 16 to 40 pixels."""
    root = tmp_path / "mixed"
    kinds = [
        "jpg",
        "rotated.jpg",
        "palette.png",
        "alpha.png",
        "cmyk.jpg",
        "deep.png",
        "la.png",
        "gif",
        "webp",
        "bmp",
        "tiff",
    ]
    for i in range(64):
        kind = kinds[i % len(kinds)]
        image = Image.fromarray(picture(i, 16 + i % 25, 16 + i % 7))
        exif = Image.Exif()
        match kind:
            case "rotated.jpg":
                exif[0x0112] = 6
            case "palette.png":
                image = image.quantize(16)
            case "alpha.png":
                image.putalpha(i * 3)
            case "cmyk.jpg":
                image = image.convert("CMYK")
            case "deep.png":
                image = Image.fromarray(picture(i, 18, 18, 1).astype(np.uint16) * 257)
            case "la.png":
                image = image.convert("LA")
        path = root / ("even" if i % 2 == 0 else "odd") / f"{i:02}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, exif=exif) if kind == "rotated.jpg" else image.save(path)
    return root


@pytest.fixture
def idx_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes the four IDX files of a small data set of 28x28 images."""

    def make(name: str = "idx", train: int = 12, val: int = 5, packed: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        generator = np.random.default_rng(7)
        for split, count in [("train", train), ("t10k", val)]:
            images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            contents = {
                "images-idx3-ubyte": struct.pack(">4I", 0x803, count, 28, 28) + images.tobytes(),
                "labels-idx1-ubyte": struct.pack(">2I", 0x801, count) + labels.tobytes(),
            }
            for ending, content in contents.items():
                path = folder / f"{split}-{ending}{'.gz' if packed else ''}"
                path.write_bytes(gzip.compress(content) if packed else content)
        return folder

    return make


@pytest.fixture
def contents() -> Callable[[Path], list[tuple[str, str, bytes]]]:
    """(class, name, content) of every image of a folder of class folders, in the order in which it is prepared."""

    def read(folder: Path) -> list[tuple[str, str, bytes]]:
        return [(path.parent.name, path.name, path.read_bytes()) for path in sorted(folder.glob("*/*"))]

    return read


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """``write_tar(path, [("a.png", content), ...])``: a tar file with these members."""

    def write(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


def _same_files(first: Path, second: Path) -> bool:
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    if names != sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file()):
        return False
    arrays = [name for name in names if name.suffix == ".npy"]
    return bool(arrays) and all(filecmp.cmp(first / name, second / name, shallow=False) for name in arrays)


@pytest.fixture
def same_arrays() -> Callable[[Path, Path], bool]:
    """Whether two folders of prepared data hold the same files, their arrays equal to the byte."""
    return _same_files
