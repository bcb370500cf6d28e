from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data.given import read_given_images
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.samples import write_png_folder


def _save(path: Path, height: int, width: int, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return path


def test_one_picture_is_cropped_and_averaged(tmp_path: Path) -> None:
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, 2:6], pixels[:, 6:10], pixels[:, :2], pixels[:, 10:] = 40, 80, 255, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    given = read_given_images(tmp_path / "a.png", 2, 3)
    assert given.labels is None
    assert given.images.dtype == np.uint8
    assert given.images[0, ..., 0].tolist() == [[40, 80], [40, 80]]


def test_a_folder_in_order_of_names_leaving_other_files_out(tmp_path: Path) -> None:
    _save(tmp_path / "b.png", 9, 10, 20)
    _save(tmp_path / "a.bmp", 8, 8, 10)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    given = read_given_images(tmp_path, 8, 1)
    assert given.images.shape == (2, 8, 8, 1)
    assert given.images[:, 0, 0, 0].tolist() == [10, 20]


def test_folders_of_images_one_after_the_other(tmp_path: Path) -> None:
    _save(tmp_path / "b/0.png", 8, 8, 30)
    _save(tmp_path / "a/2.png", 8, 8, 20)
    _save(tmp_path / "a/1.JPG", 8, 8, 10)
    _save(tmp_path / "c/deep/0.png", 8, 8, 40)
    _save(tmp_path / ".hidden/0.png", 8, 8)
    _save(tmp_path / "a/.hidden.png", 8, 8)
    _save(tmp_path / "__MACOSX/0.png", 8, 8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    given = read_given_images(tmp_path, 8, 1)
    assert given.images[:, 0, 0, 0].tolist() == [10, 20, 30, 40]
    assert given.labels is None


@pytest.mark.parametrize("names", [["hat", "coat"], None])
def test_what_samples_are_written_to_is_read_again(tmp_path: Path, names: list[str] | None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    write_png_folder(tmp_path / "out", images, np.array([0, 1, 0]), names)
    order = [0, 2, 1] if names is None else [1, 0, 2]  # by class name, then by number
    assert np.array_equal(read_given_images(tmp_path / "out", 8, 3).images, images[order])


def test_images_both_in_a_folder_and_in_folders_in_it_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 8, 8)
    _save(tmp_path / "more/b.png", 8, 8)
    with pytest.raises(
        UserError, match=r"images both directly in it \(a\.png\) and in folders \(more/b\.png\)"
    ) as error:
        read_given_images(tmp_path, 8, 3)
    assert str(tmp_path) in str(error.value)


def test_an_archive_with_and_without_labels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", images)
    np.savez(tmp_path / "labelled.npz", images, np.array([2, 0, 1]))
    plain, labelled = (read_given_images(tmp_path / f"{name}.npz", 8, 3) for name in ("plain", "labelled"))
    assert np.array_equal(plain.images, images)
    assert plain.labels is None
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [2, 0, 1]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty/deep").mkdir(parents=True)
    for path, words in (
        (tmp_path / "nowhere", "neither an image, a folder of images nor an .npz"),
        (tmp_path / "nowhere.npz", "no such file"),
        (tmp_path / "empty", "neither an image"),
        (_save(tmp_path / "small" / "a.png", 4, 20), "4 pixels a side; at least 8"),
    ):
        with pytest.raises(UserError) as caught:
            read_given_images(path, 8, 3)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png"):
        read_given_images(tmp_path / "broken.png", 8, 3)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"broken\.npz"):
        read_given_images(tmp_path / "broken.npz", 8, 3)


def test_an_archive_of_other_channels_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"grey\.npz: 1 image channels; allowed here: 3"):
        read_given_images(tmp_path / "grey.npz", 8, 3)
