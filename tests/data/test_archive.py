import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cascaded_diffusion.data.archive import open_archive
from cascaded_diffusion.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("images", "labels")])
def test_images_and_labels(tmp_path: Path, names: tuple[str, str], compressed: bool) -> None:
    path = tmp_path / "data.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, **{names[0]: IMAGES, names[1]: np.array([0, 2, 1, 0, 2], np.int32)})
    source = open_archive(path, tmp_path)
    assert source.name == "data.npz"
    assert source.class_names == ["0", "1", "2"]
    assert [(item.key, item.label) for item in source.items] == [(0, 0), (1, 2), (2, 1), (3, 0), (4, 2)]
    assert source.facts is not None
    assert (source.facts.height, source.facts.width, source.facts.grey) == (4, 6, False)
    (stack,) = source.reader.read([3, 1], 3)
    np.testing.assert_array_equal(stack, IMAGES[[3, 1]])


@pytest.mark.parametrize("labels", [None, np.full(5, -1)])
def test_without_classes(tmp_path: Path, labels: np.ndarray | None) -> None:
    path = saved(tmp_path, arr_0=IMAGES) if labels is None else saved(tmp_path, arr_0=IMAGES, arr_1=labels)
    source = open_archive(path, tmp_path)
    assert source.class_names is None
    assert {item.label for item in source.items} == {-1}


@pytest.mark.parametrize("dtype, order", [(np.float32, "C"), (np.float64, "F"), (np.int64, "C"), (bool, "C")])
def test_one_hot_labels(tmp_path: Path, dtype: type, order: Literal["C", "F"]) -> None:
    rows = np.asarray(np.eye(4)[[3, 0, 1, 1, 3]], dtype, order=order)
    source = open_archive(saved(tmp_path, arr_0=IMAGES, arr_1=rows), tmp_path)
    assert [item.label for item in source.items] == [3, 0, 1, 1, 3]
    assert source.class_names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("images", [IMAGES[..., 0], IMAGES[..., :1], np.asfortranarray(IMAGES[..., 0])])
def test_grey_images_with_and_without_an_axis_of_channels(tmp_path: Path, images: np.ndarray) -> None:
    source = open_archive(saved(tmp_path, arr_0=images), tmp_path)
    assert source.facts is not None
    assert source.facts.grey
    (stack,) = source.reader.read([0, 4], 1)
    np.testing.assert_array_equal(stack, IMAGES[[0, 4], ..., :1])


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": IMAGES}, "no array arr_0 or images in it (it has x.npy)"),
        ({"arr_0": IMAGES, "images": IMAGES}, "only one of them can be meant"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0.npy is float32 (5, 4, 6, 3); give uint8 images"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, "is uint8 (5, 3, 4, 6); give"),
        ({"arr_0": np.zeros((5, 4, 6, 4), np.uint8)}, "with 1 or 3 channels"),
        ({"arr_0": IMAGES[:0]}, "is uint8 (0, 4, 6, 3)"),
        ({"arr_0": IMAGES, "arr_1": np.zeros(4, np.int64)}, "arr_1.npy is int64 (4,); give whole numbers (5,)"),
        ({"arr_0": IMAGES, "arr_1": np.zeros(5)}, "arr_1.npy is float64 (5,)"),
        ({"arr_0": IMAGES, "arr_1": np.full((5, 2), 0.5)}, "arr_1.npy is float64 (5, 2) but not one-hot"),
        ({"arr_0": IMAGES, "arr_1": np.ones((5, 2), bool)}, "not one-hot: give one 1 a row"),
        ({"arr_0": IMAGES, "arr_1": np.eye(4)}, "arr_1.npy is float64 (4, 4); give whole numbers (5,)"),
        (
            {"arr_0": IMAGES, "arr_1": np.array([0, 1, 3, -1, 2])},
            "arr_1.npy has no class (-1) for image 3, where image 0 has class 0; give all images a class, or all -1",
        ),
        ({"arr_0": IMAGES, "arr_1": np.array([-1, -1, 7, 5, -1], np.int8)}, "for image 0, where image 2 has class 7"),
        ({"arr_0": IMAGES, "arr_1": np.array([0, 0, 0, 0, -2])}, "labels from -2 to 0"),
        ({"arr_0": IMAGES, "arr_1": np.array([0, 0, 0, 0, 2**40])}, "labels from 0 to 1099511627776"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(UserError) as error:
        open_archive(path, tmp_path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, arr_0=np.array([print, None], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="is object"):
        open_archive(path, tmp_path)


def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 64, 64, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(b"few")
    with pytest.raises(UserError, match="claims 13510798882111488 bytes"):
        open_archive(path, tmp_path)
    assert not (tmp_path / "pixels.npy").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half"])
def test_files_that_are_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a whole \.npz file"):
        open_archive(path, tmp_path)


def test_damaged_pixels_are_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, arr_0=IMAGES)
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # inside the stored pixels
    path.write_bytes(content)
    with pytest.raises(UserError, match="CRC"):
        open_archive(path, tmp_path)


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", "text")
    with pytest.raises(UserError, match=r"arr_0.npy is not an array"):
        open_archive(path, tmp_path)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = open_archive(saved(tmp_path, arr_0=IMAGES), tmp_path).fingerprint
    assert open_archive(saved(tmp_path, arr_0=IMAGES), tmp_path).fingerprint == first
    assert open_archive(saved(tmp_path, arr_0=255 - IMAGES), tmp_path).fingerprint != first


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, frugal: Callable[..., str]) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (2**9, 2**10, 2**10)}
        )
        for _ in range(2**9):
            member.write(bytes(2**20))
    assert "arr_0.npy: " in (outcome := frugal(lambda: open_archive(path, tmp_path)))
    assert "bytes that unpack to 53687" in outcome
    assert not (tmp_path / "pixels.npy").exists()


def test_more_images_than_memory_has_room_for_are_refused(tmp_path: Path, frugal: Callable[..., str]) -> None:
    """Of one pixel each; a list of them takes two hundred times as much memory as they do."""
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10_000_001, 1, 1)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(10_000_001))
    assert "holds 10000001 images; at most 10000000" in frugal(lambda: open_archive(path, tmp_path))


def test_one_hot_rows_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascaded_diffusion.data.archive._BLOCK", 70)  # two rows of four float64
    rows = np.eye(4)[[3, 0, 1, 1, 3]]
    source = open_archive(saved(tmp_path, arr_0=IMAGES, arr_1=rows), tmp_path)
    assert [item.label for item in source.items] == [3, 0, 1, 1, 3]
    rows[4, 0] = 0.5
    with pytest.raises(UserError, match="not one-hot"):
        open_archive(saved(tmp_path, arr_0=IMAGES, arr_1=rows), tmp_path)
