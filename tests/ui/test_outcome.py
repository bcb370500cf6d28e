"""What a run leaves to download and to look at."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.ui.outcome import across, sheet, write_files

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_files_hold_the_images(tmp_path: Path) -> None:
    labels = np.array([1, 0, 1])
    files = write_files(tmp_path / "run", IMAGES, labels, ("a/b", "Bag"))
    with np.load(files.array) as array:
        assert array.files == ["arr_0", "arr_1"]
        assert np.array_equal(array["arr_0"], IMAGES)
        assert array["arr_1"].dtype == np.int64
        assert array["arr_1"].tolist() == [1, 0, 1]
    with zipfile.ZipFile(files.archive) as archive:
        assert archive.namelist() == ["Bag/000000.png", "a-b/000001.png", "Bag/000002.png"]
        for name, image, png in zip(archive.namelist(), IMAGES, files.pngs, strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(archive.read(name)))), image)
            assert np.array_equal(np.asarray(Image.open(png)), image)


def test_without_classes_files_are_numbered(tmp_path: Path) -> None:
    files = write_files(tmp_path / "run", IMAGES[..., :1], np.full(3, -1), ())
    assert [path.name for path in files.pngs] == ["000000.png", "000001.png", "000002.png"]
    assert np.load(files.array)["arr_1"].tolist() == [-1, -1, -1]


def test_the_files_of_an_earlier_run_go(tmp_path: Path) -> None:
    write_files(tmp_path / "run", IMAGES, np.full(3, -1), ())
    write_files(tmp_path / "run", IMAGES[:1], np.full(1, -1), ())
    assert [path.name for path in (tmp_path / "run/png").iterdir()] == ["000000.png"]


@pytest.mark.parametrize("count, row", [(1, 1), (2, 2), (4, 2), (7, 4), (9, 3), (10, 5), (12, 4), (36, 6), (64, 6)])
def test_rows_are_filled(count: int, row: int) -> None:
    assert across(count) == row


def test_a_sheet_shows_pixels_as_squares() -> None:
    picture = np.asarray(sheet(IMAGES[:1, ..., :1]))
    assert picture.shape == (768, 768, 3)
    assert (picture[:96, :96] == IMAGES[0, 0, 0, 0]).all()
    assert (picture[-1, -1] == IMAGES[0, -1, -1, 0]).all()


def test_a_sheet_holds_all_images() -> None:
    wide, high = sheet(IMAGES[:2]).size
    assert wide > 1.8 * high
    large = np.zeros((1, 900, 900, 3), np.uint8)
    assert sheet(large).size == (900, 900)
