"""Small folders and files to prepare."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
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
