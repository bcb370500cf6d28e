from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion import samples
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.samples import class_folder, png_names, to_rgb, write_npz, write_png_folder


@pytest.fixture
def images() -> np.ndarray:
    """Four 5x5 RGB images of noise."""
    return np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)


def test_npz_is_the_form_that_evaluation_suites_read(tmp_path: Path, images: np.ndarray) -> None:
    write_npz(tmp_path / "out.npz", images, np.array([0, 1, -1, 2]))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert sorted(archive) == ["arr_0", "arr_1"]
        assert np.array_equal(archive["arr_0"], images)
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_1"].tolist() == [0, 1, -1, 2]
        assert archive["arr_1"].dtype == np.int64


def test_npz_is_the_file_that_numpy_writes(tmp_path: Path, images: np.ndarray) -> None:
    """Byte for byte, also where the images come one by one."""

    class FromElsewhere:
        shape = images.shape

        def __iter__(self) -> Iterator[np.ndarray]:
            return iter(list(images))

    labels = np.array([0, 1, -1, 2])
    np.savez(tmp_path / "numpy.npz", images, labels)
    for given in (images, images[::-1][::-1], FromElsewhere()):
        write_npz(tmp_path / "out.npz", given, labels)
        assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_png_by_class_name(tmp_path: Path, images: np.ndarray) -> None:
    write_png_folder(tmp_path / "out", images, np.array([0, 1, 0, 1]), ["T-shirt/top", "Bag"])
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert names == ["Bag/000001.png", "Bag/000003.png", "T-shirt-top/000000.png", "T-shirt-top/000002.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "Bag" / "000003.png")), images[3])


def test_png_by_class_number_without_classes_and_with_a_mark(tmp_path: Path, images: np.ndarray) -> None:
    grey = images[..., :1]
    write_png_folder(tmp_path / "numbers", grey, np.array([3, 3, 4, 4]), None)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "numbers" / "4" / "000002.png")), grey[2, ..., 0])
    write_png_folder(tmp_path / "plain", images, np.full(4, -1), None, mark="-predicted")
    assert sorted(path.name for path in (tmp_path / "plain").iterdir())[0] == "000000-predicted.png"


def test_the_names_are_known_before_the_files(tmp_path: Path, images: np.ndarray) -> None:
    for names, labels, mark in ((["T-shirt/top", "Bag"], [0, 1, 0, 1], ""), (None, [-1, -1, 2, 0], "-predicted")):
        folder = tmp_path / f"out{mark}"
        write_png_folder(folder, images, np.array(labels), names, mark=mark)
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
        assert found == sorted(png_names(np.array(labels), names, mark))


def test_a_png_folder_appears_when_all_of_it_is_there(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = iter(range(3))

    def fail_later(*_: object) -> None:
        if next(saved) == 2:
            raise OSError("the disk is full")

    monkeypatch.setattr(samples, "save_png", fail_later)
    with pytest.raises(OSError, match="full"):
        write_png_folder(tmp_path / "out", images, np.array([0, 1, 0, 1]), None)
    assert list(tmp_path.iterdir()) == []


def test_samples_are_not_mixed_with_what_is_there(tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "old.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"already there and not an empty folder"):
        write_png_folder(tmp_path, images, np.zeros(4, np.int64), None)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]


@pytest.mark.parametrize(
    "name, folder",
    [
        ("Ankle boot", "Ankle boot"),
        ("../../etc", "-..-etc"),
        ("..", "class"),
        ("", "class"),
        ("a/b\\c:d", "a-b-c-d"),
        ("a\x00\nb", "a-b"),
        ("trailing. ", "trailing"),
    ],
)
def test_a_class_name_is_one_path_component(name: str, folder: str) -> None:
    made = class_folder(name)
    assert made == folder
    assert Path(made).name == made
    assert made not in (".", "..")


def test_grey_as_rgb(images: np.ndarray) -> None:
    grey = images[..., :1]
    assert to_rgb(grey).shape == (4, 5, 5, 3)
    assert all(np.array_equal(to_rgb(grey)[..., i], grey[..., 0]) for i in range(3))
    assert to_rgb(images) is images


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        " ",
        "../../x",
        "/etc",
        "a\0b",
        "C:\\x",
        "x" * 1000,
        "𝔘" * 300,
        "a\nb",
        "\x7f",
        ". .",
        "\udc80",
        "-",
    ],
)
def test_a_class_folder_is_one_short_name_inside(tmp_path: Path, name: str) -> None:
    folder = class_folder(name)
    assert len(folder.encode()) <= 200
    assert (tmp_path / folder).resolve().parent == tmp_path.resolve()
    (tmp_path / folder).mkdir()
