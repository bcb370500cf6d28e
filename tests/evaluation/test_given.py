from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.given import read_samples, same_channels

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "samples.npz", **arrays)
    return folder / "samples.npz"


def test_images_labels_and_hash(tmp_path: Path) -> None:
    path = saved(tmp_path, arr_0=IMAGES, arr_1=np.eye(3, dtype=np.float32)[[2, 0, 1, 1, 2]])
    with read_samples(path) as given:
        assert np.array_equal(given.images, IMAGES)
        assert given.labels.tolist() == [2, 0, 1, 1, 2]
        assert given.labels.dtype == np.int64
        assert (given.name, given.sha256) == ("samples.npz", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("labels", [{}, {"arr_1": np.full(5, -1)}])
def test_without_labels_and_without_an_axis_of_channels(tmp_path: Path, labels: dict[str, np.ndarray]) -> None:
    with read_samples(saved(tmp_path, arr_0=IMAGES[..., 0], **labels)) as given:
        assert given.images.shape == (5, 4, 4, 1)
        assert given.labels.tolist() == [-1] * 5


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"arr_0": IMAGES[:, :3]}, "images of 4x3 pixels; give square ones"),
        ({"arr_0": IMAGES / 255}, "arr_0.npy is float64"),
        ({"arr_0": IMAGES[:0]}, r"is uint8 \(0, 4, 4, 3\)"),
        ({"arr_0": np.array([print], object)}, "is object"),
        ({"mu": np.zeros(3)}, "no array arr_0"),
    ],
)
def test_other_files(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message), read_samples(saved(tmp_path, **arrays)):
        pass


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"), read_samples(tmp_path / "samples.npz"):
        pass


def test_channels_that_agree_are_left_alone() -> None:
    found = same_channels(IMAGES, 3)
    assert found == (IMAGES, "samples and real images are colour", "") or found.images is IMAGES
    assert found.warning == ""


def test_grey_becomes_three_equal_channels() -> None:
    found = same_channels(IMAGES[..., :1], 3)
    assert found.images.shape == IMAGES.shape
    assert (found.images == IMAGES[..., :1]).all()
    assert "repeated" in found.words


def test_three_equal_channels_become_one() -> None:
    found = same_channels(np.repeat(IMAGES[..., :1], 3, axis=3), 1)
    assert np.array_equal(found.images, IMAGES[..., :1])
    assert "three equal channels" in found.words
    assert found.warning == ""


def test_colours_are_averaged_and_warned_of() -> None:
    many = np.repeat(IMAGES[:1, ..., :1], 3, axis=3).repeat(1500, axis=0)
    many[-1] = (0, 100, 201)  # one image, in the last block
    found = same_channels(many, 1)
    assert np.array_equal(found.images[:-1], many[:-1, ..., :1])
    assert (found.images[-1] == 100).all()
    assert "averaged" in found.words
    assert "no score sees the colours" in found.warning
