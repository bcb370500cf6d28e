import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError


@pytest.fixture
def folder(class_folder: Path, tmp_path: Path) -> Path:
    prepare(str(class_folder), tmp_path / "out", resolutions=[4, 8], workers=0)
    return tmp_path / "out"


def test_reading(folder: Path) -> None:
    data = PreparedData.open(folder)
    assert (data.channels, data.classes, data.class_names) == (3, 3, ["ant", "bee", "cat"])
    assert (data.resolutions, data.splits) == ([4, 8], ["train"])
    train = data.split("train")
    assert len(train) == 9
    assert train.images(8).shape == (9, 8, 8, 3)
    assert isinstance(train.images(8), np.memmap)
    assert not train.images(8).flags.writeable
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert train.labels.dtype == np.int64
    data.verify()


def test_what_is_not_there_is_named_with_what_is(folder: Path) -> None:
    data = PreparedData.open(str(folder))
    with pytest.raises(UserError, match="no images of resolution 16; it has 4, 8"):
        data.split("train").images(16)
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        data.split("val")


def test_what_is_no_prepared_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        PreparedData.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not prepared data \(no manifest.json\)"):
        PreparedData.open(tmp_path)


def test_a_missing_or_changed_file_is_named(folder: Path) -> None:
    path = folder / "train/images_8.npy"
    whole = path.read_bytes()
    other_labels = folder / "train/labels.npy"
    labels = np.load(other_labels)

    path.unlink()
    with pytest.raises(UserError, match=r"images_8.npy: missing"):
        PreparedData.open(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"images_8.npy: not a whole .npy file"):
        PreparedData.open(folder)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match=r"images_8.npy: not a whole .npy file"):
        PreparedData.open(folder)
    for wrong in (
        np.zeros((9, 8, 8, 1), np.uint8),
        np.zeros((9, 8, 8, 3), np.int8),
        np.asfortranarray(np.zeros((9, 8, 8, 3), np.uint8)),
    ):
        np.save(path, wrong)
        with pytest.raises(UserError, match=r"images_8.npy: .*; the manifest asks for uint8 \(9, 8, 8, 3\)"):
            PreparedData.open(folder)
    with path.open("wb") as file:
        np.savez(file, np.zeros(1))
    with pytest.raises(UserError, match=r"images_8.npy: not a whole .npy file"):
        PreparedData.open(folder)
    path.write_bytes(whole)

    for low, high in [(-1, 2), (0, 3)]:
        np.save(other_labels, np.array([low, high, *labels[2:]]))
        with pytest.raises(UserError, match=rf"labels.npy: labels from {low} to {high}; the manifest allows 0 to 2"):
            PreparedData.open(folder)


def test_verify_finds_a_changed_pixel(folder: Path) -> None:
    path = folder / "train/images_8.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    data = PreparedData.open(folder)
    with pytest.raises(UserError, match=r"images_8.npy: not as it was prepared"):
        data.verify()


def test_verify_reads_only_the_files_it_is_given(folder: Path) -> None:
    path = folder / "train/images_8.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    data = PreparedData.open(folder)
    data.verify(["train/images_4.npy", "train/labels.npy"])
    with pytest.raises(UserError, match=r"images_8.npy: not as it was prepared"):
        data.verify(["train/labels.npy", "train/images_8.npy"])


def test_a_manifest_cannot_point_elsewhere(folder: Path) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    value["files"]["../../secret.npy"] = "0" * 64
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="files must list exactly"):
        PreparedData.open(folder)


def test_files_elsewhere_are_not_read(folder: Path, tmp_path: Path) -> None:
    for name in ("train/images_8.npy", "train/labels.npy", "manifest.json"):
        path = folder / name
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=rf"{path.name}: a link that leads out of"):
            PreparedData.open(folder)
        path.unlink()
        (tmp_path / "elsewhere").rename(path)
    PreparedData.open(folder)


def test_a_pipe_in_place_of_an_array_is_not_waited_for(folder: Path, frugal: Callable[..., str]) -> None:
    path = folder / "train/labels.npy"
    path.unlink()
    os.mkfifo(path)
    assert "labels.npy: missing from the prepared data" in frugal(lambda: PreparedData.open(folder))


@pytest.mark.parametrize("count, words", [(2**40, "counts.train: "), (2**28, "not a whole .npy file")])
def test_labels_without_end_take_no_memory(folder: Path, frugal: Callable[..., str], count: int, words: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"]["train"] = count
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with (folder / "train/labels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
        file.truncate(2**20)
    assert words in frugal(lambda: PreparedData.open(folder))
