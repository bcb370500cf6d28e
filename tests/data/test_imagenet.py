from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data.imagenet import find_imagenet
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError

SYNSETS = ["n01440764", "n01443537", "n02102040"]
VAL = ["n02102040", "n01440764", "n02102040", "n01443537"]


@pytest.fixture
def release(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    """ILSVRC as it is handed out: six training and four validation images, and a test image."""
    root = tmp_path / "imagenet"
    splits = root / "ILSVRC/Data/CLS-LOC"
    for number, synset in enumerate(SYNSETS):
        (splits / "train" / synset).mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(picture(10 * number + i, 18, 20))
            image.save(splits / f"train/{synset}/{synset}_{i}.JPEG")
    for split, count in (("val", 4), ("test", 1)):
        (splits / split).mkdir()
        for i in range(count):
            Image.fromarray(picture(100 + i, 20, 18)).save(splits / split / f"ILSVRC2012_{split}_{i + 1:08}.JPEG")
    rows = [f"ILSVRC2012_val_{i + 1:08},{synset} 1 2 3 4 {synset} 5 6 7 8" for i, synset in enumerate(VAL)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")
    return root


def run(folder: Path, out: Path, notes: list[str] | None = None) -> PreparedData:
    note = (lambda _: None) if notes is None else notes.append
    prepare(str(folder), out, resolutions=[4, 16], workers=0, note=note)
    return PreparedData.open(out)


def check(data: PreparedData) -> None:
    assert data.class_names == SYNSETS
    assert data.split("train").labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.split("val").labels.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("inside", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_the_release_from_any_of_its_folders(release: Path, tmp_path: Path, inside: str) -> None:
    notes: list[str] = []
    data = run(release / inside, tmp_path / "out", notes)
    check(data)
    assert data.manifest.source == (release / inside).name
    assert any("test: left out" in line for line in notes)


def test_the_same_as_class_folders(release: Path, same_arrays: Callable[..., bool], tmp_path: Path) -> None:
    run(release, tmp_path / "release")
    splits = release / "ILSVRC/Data/CLS-LOC"
    shutil.copytree(splits / "train", tmp_path / "sorted/train")
    for i, synset in enumerate(VAL):
        (tmp_path / f"sorted/val/{synset}").mkdir(parents=True, exist_ok=True)
        name = f"ILSVRC2012_val_{i + 1:08}.JPEG"
        shutil.copy(splits / "val" / name, tmp_path / f"sorted/val/{synset}/{name}")
    assert find_imagenet(tmp_path / "sorted") is None  # an ordinary folder
    flat, ordered = (PreparedData.open(tmp_path / "release"), run(tmp_path / "sorted", tmp_path / "ordered"))
    np.testing.assert_array_equal(flat.split("train").images(16), ordered.split("train").images(16))
    order = np.argsort(flat.split("val").labels, kind="stable")
    np.testing.assert_array_equal(flat.split("val").images(16)[order], ordered.split("val").images(16))
    shutil.copytree(tmp_path / "sorted", tmp_path / "with-test")
    shutil.copytree(splits / "test", tmp_path / "with-test/test")
    run(tmp_path / "with-test", tmp_path / "without")
    assert same_arrays(tmp_path / "without", tmp_path / "ordered")


def test_a_plain_folder_with_the_table_in_it(release: Path, tmp_path: Path) -> None:
    splits = release / "ILSVRC/Data/CLS-LOC"
    shutil.rmtree(splits / "test")
    (release / "LOC_val_solution.csv").rename(splits / "LOC_val_solution.csv")
    shutil.move(splits, tmp_path / "plain")
    check(run(tmp_path / "plain", tmp_path / "out"))


def test_classes_from_annotations(release: Path, tmp_path: Path) -> None:
    (release / "LOC_val_solution.csv").unlink()
    folder = release / "ILSVRC/Annotations/CLS-LOC/val"
    folder.mkdir(parents=True)
    for i, synset in enumerate(VAL):
        words = f"<annotation><object><name>{synset}</name></object></annotation>"
        (folder / f"ILSVRC2012_val_{i + 1:08}.xml").write_text(words)
    check(run(release, tmp_path / "out"))
    (folder / "ILSVRC2012_val_00000002.xml").unlink()
    with pytest.raises(UserError, match=r"val/ILSVRC2012_val_00000002.JPEG: its class is not in .*Annotations"):
        run(release, tmp_path / "other")


def test_what_does_not_tell_the_classes(release: Path, tmp_path: Path) -> None:
    table = release / "LOC_val_solution.csv"
    content = table.read_text()
    table.write_text(content.replace("ILSVRC2012_val_00000003", "ILSVRC2012_val_00000009"))
    with pytest.raises(UserError, match=r"val_00000003.JPEG: its class is not in .*LOC_val_solution.csv"):
        run(release, tmp_path / "out")
    table.write_text(content.replace("n01443537", "n09999999"))
    with pytest.raises(UserError, match="class n09999999 is not in train"):
        run(release, tmp_path / "out")
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"LOC_val_solution.csv: cannot be read"):
        run(release, tmp_path / "out")
    table.unlink()
    with pytest.raises(UserError, match=r"nothing tells the classes of its images; put LOC_val_solution.csv or"):
        run(release, tmp_path / "out")


def test_other_classes_are_another_source(release: Path, tmp_path: Path) -> None:
    run(release, tmp_path / "out")
    notes: list[str] = []
    run(release, tmp_path / "out", notes)
    assert notes[-1].endswith("already prepared, nothing to do")
    table = release / "LOC_val_solution.csv"
    table.write_text(table.read_text().replace("n01440764", "n01443537"))
    with pytest.raises(UserError, match="a source with other files"):
        run(release, tmp_path / "out")


def test_other_folders_are_not_taken_for_it(class_folder: Path, tmp_path: Path) -> None:
    assert find_imagenet(class_folder) is None
    shutil.copytree(class_folder, tmp_path / "both/train")
    (tmp_path / "both/val").mkdir()
    assert find_imagenet(tmp_path / "both") is None
