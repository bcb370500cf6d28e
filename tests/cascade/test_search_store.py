"""What a search's record says of two points."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from cascaded_diffusion.cascade.search_store import PointResult, SearchStore, difference_error
from cascaded_diffusion.errors import UserError


def point(error: float, *replicates: float) -> PointResult:
    return PointResult(
        key="k",
        label="a point",
        stage="sr16",
        settings={},
        evaluations={},
        value=1.0,
        standard_error=error,
        replicates=replicates,
        n=9,
        dimensions=2,
        reference_n=9,
    )


def test_error_of_a_difference_is_that_of_paired_resamples() -> None:
    a, b = point(1.0, 1, 2, 3, 4), point(1.0, 1.1, 2.1, 2.9, 3.9)
    assert difference_error(a, b) == pytest.approx(0.1154700538)  # of -0.1, -0.1, 0.1, 0.1
    assert difference_error(a, a) == 0


def test_without_resamples_the_errors_add_up() -> None:
    assert difference_error(point(3.0), point(4.0)) == 5
    assert difference_error(point(3.0, 1, 2), point(4.0)) == 5


class Place(NamedTuple):
    """As much of a point as its files' names need."""

    key: str = "p"


@pytest.fixture
def images_file(tmp_path: Path) -> Path:
    (tmp_path / "points").mkdir()
    return tmp_path / "points/p.npz"


def load(path: Path) -> np.ndarray:
    point: Any = Place()
    return SearchStore(path.parent.parent).load_images(point, range(2))


def test_images_come_back(images_file: Path) -> None:
    images = np.arange(3 * 4 * 4 * 1, dtype=np.uint8).reshape(3, 4, 4, 1)
    np.savez(images_file, images, np.zeros(3))
    np.testing.assert_array_equal(load(images_file), images[:2])


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 4, 1)), np.array([print], dtype=object)])
def test_other_arrays_are_damage(images_file: Path, array: np.ndarray) -> None:
    np.savez(images_file, array, allow_pickle=True)
    with pytest.raises(UserError, match=r"p\.npz: damaged \(arr_0 is .*\); delete it"):
        load(images_file)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_other_files_are_damage(images_file: Path, content: bytes) -> None:
    images_file.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.npz: damaged \(not a whole"):
        load(images_file)
