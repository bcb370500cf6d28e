import filecmp
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data.fashion_mnist import DEBIAN_FOLDER
from cascaded_diffusion.data.pixels import area_resize, centre_square
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError

Picture = Callable[..., np.ndarray]


def same_files(first: Path, second: Path) -> bool:
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    if names != sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file()):
        return False
    return all(filecmp.cmp(first / name, second / name, shallow=False) for name in names)


def test_class_folders(class_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    manifest = prepare(
        str(class_folder), tmp_path / "out", resolutions=[16, 8], workers=0, progress=lambda *step: seen.append(step)
    )
    assert manifest.model_dump(mode="json") == json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest.source, manifest.channels, manifest.resolutions) == ("pictures", 3, [8, 16])
    assert (manifest.counts.train, manifest.counts.val) == (9, 0)
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")) == [
        "manifest.json",
        "train/images_16.npy",
        "train/images_8.npy",
        "train/labels.npy",
    ]
    train = PreparedData.open(tmp_path / "out").split("train")
    files = sorted(class_folder.rglob("*.png"))
    for i, path in enumerate(files):
        with Image.open(path) as image:
            crop = centre_square(np.asarray(image)[None])
        for size in (8, 16):
            np.testing.assert_array_equal(train.images(size)[i], area_resize(crop, size)[0])
    assert seen[0] == ("checking", 0, 9)
    assert seen[-1] == ("writing train", 9, 9)


def test_every_kind_of_file_and_any_number_of_workers(mixed_folder: Path, tmp_path: Path) -> None:
    for workers in (0, 1, 2):
        prepare(str(mixed_folder), tmp_path / f"out{workers}", resolutions=[4, 7, 16], val=0.25, workers=workers)
    assert same_files(tmp_path / "out0", tmp_path / "out1")
    assert same_files(tmp_path / "out0", tmp_path / "out2")
    data = PreparedData.open(tmp_path / "out0")
    data.verify()
    assert data.channels == 3
    counts = data.manifest.counts
    assert counts.train + counts.val == 64
    assert 5 < counts.val < 30


def test_grey_only_if_all_are_grey(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(3):
        Image.fromarray(picture(i, channels=1)).save(tmp_path / f"flat/{i}.png")
    assert prepare(str(tmp_path / "flat"), tmp_path / "grey", resolutions=[4], workers=0).channels == 1
    Image.fromarray(picture(9)).save(tmp_path / "flat/9.png")
    assert prepare(str(tmp_path / "flat"), tmp_path / "colour", resolutions=[4], workers=0).channels == 3
    grey, colour = (PreparedData.open(tmp_path / name).split("train").images(4) for name in ("grey", "colour"))
    np.testing.assert_array_equal(np.repeat(grey, 3, axis=-1), colour[:3])
    assert PreparedData.open(tmp_path / "colour").split("train").labels.tolist() == [-1] * 4


def test_split_folders(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    shutil.copytree(class_folder, tmp_path / "both/train")
    shutil.copytree(class_folder / "bee", tmp_path / "both/val/bee")
    prepare(str(tmp_path / "both"), tmp_path / "out", resolutions=[8], workers=0)
    data = PreparedData.open(tmp_path / "out")
    assert data.class_names == ["ant", "bee", "cat"]
    assert (len(data.split("train")), data.split("val").labels.tolist()) == (9, [1, 1, 1])
    np.testing.assert_array_equal(data.split("val").images(8), data.split("train").images(8)[4:7])
    with pytest.raises(UserError, match=r"val: 0.5; not for both, whose splits are its folders train and val"):
        prepare(str(tmp_path / "both"), tmp_path / "other", resolutions=[8], val=0.5, workers=0)


def test_copies_of_an_image_never_cross_splits(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(40):
        Image.fromarray(picture(i % 20)).save(tmp_path / f"flat/{i:02}.png")
    np.savez(tmp_path / "flat.npz", arr_0=np.stack([picture(i % 20) for i in range(40)]))
    for source in ("flat", "flat.npz"):
        out = tmp_path / f"out-{source}"
        prepare(str(tmp_path / source), out, resolutions=[16], val=0.4, workers=0)
        data = PreparedData.open(out)
        train, val = ({image.tobytes() for image in data.split(name).images(16)} for name in ("train", "val"))
        assert len(train) + len(val) == 20
        assert not train & val


def test_a_fraction_that_gives_no_val(class_folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    manifest = prepare(str(class_folder), tmp_path / "out", resolutions=[8], val=1e-9, workers=0, note=notes.append)
    assert manifest.counts.val == 0
    assert "no val split" in notes[0]
    assert not (tmp_path / "out/val").exists()
    with pytest.raises(UserError, match="no training image left of 9"):
        prepare(str(class_folder), tmp_path / "none", resolutions=[8], val=1 - 1e-9, workers=0)


def test_limit_takes_a_class_balanced_part(class_folder: Path, tmp_path: Path) -> None:
    prepare(str(class_folder), tmp_path / "all", resolutions=[8], workers=0)
    prepare(str(class_folder), tmp_path / "some", resolutions=[8], limit=5, workers=0)
    some, whole = (PreparedData.open(tmp_path / name).split("train") for name in ("some", "all"))
    assert some.labels.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_array_equal(some.images(8), whole.images(8)[[0, 4, 7, 1, 5]])
    assert prepare(str(class_folder), tmp_path / "more", resolutions=[8], limit=99, workers=0).counts.train == 9


def test_npz(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([1, 0, 1, 0, 2, 2]))
    manifest = prepare(str(tmp_path / "a.npz"), tmp_path / "out", resolutions=[4, 8], workers=0)
    assert (manifest.source, manifest.class_names) == ("a.npz", ["0", "1", "2"])
    train = PreparedData.open(tmp_path / "out").split("train")
    np.testing.assert_array_equal(train.images(8), images)
    assert train.labels.tolist() == [1, 0, 1, 0, 2, 2]
    with pytest.raises(UserError, match=r"a.npz: image 0: 8x8 pixels, too small for resolution 16"):
        prepare(str(tmp_path / "a.npz"), tmp_path / "big", resolutions=[16], workers=0)


def test_a_second_try_does_not_see_the_first_ones_pixels(tmp_path: Path) -> None:
    for level in (1, 2):
        np.savez(tmp_path / f"{level}.npz", arr_0=np.full((3, 8, 8), level, np.uint8))
    with pytest.raises(UserError, match="too small"):
        prepare(str(tmp_path / "1.npz"), tmp_path / "out", resolutions=[16], workers=0)
    prepare(str(tmp_path / "2.npz"), tmp_path / "out", resolutions=[8], workers=0)
    assert (PreparedData.open(tmp_path / "out").split("train").images(8) == 2).all()


def test_idx_files_are_padded_not_stretched(idx_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = idx_folder()
    manifest = prepare(str(folder), tmp_path / "out", resolutions=[8, 16, 32], workers=0)
    assert (manifest.channels, manifest.counts.train, manifest.counts.val) == (1, 12, 5)
    assert "zero-padded to 32x32" in manifest.crop
    train = PreparedData.open(tmp_path / "out").split("train")
    expected = np.random.default_rng(7).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    whole = train.images(32)[..., 0]
    np.testing.assert_array_equal(whole[:, 2:30, 2:30], expected)
    assert whole.sum(dtype=np.int64) == expected.sum(dtype=np.int64)
    for size in (8, 16):
        factor = 32 // size
        sums = whole.reshape(12, size, factor, size, factor).sum((2, 4), dtype=np.int64)
        np.testing.assert_array_equal(train.images(size)[..., 0], (2 * sums + factor**2) // (2 * factor**2))
    for resolutions, message in [([28], "28; idx allows 1, 2, 4, 8, 16, 32"), ([8, 64], "64; idx allows")]:
        with pytest.raises(UserError, match=message):
            prepare(str(folder), tmp_path / "other", resolutions=resolutions, workers=0)
    with pytest.raises(UserError, match="own train and test parts"):
        prepare(str(folder), tmp_path / "other", resolutions=[8], val=0.1, workers=0)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not here")
def test_fashion_mnist_limited(tmp_path: Path) -> None:
    manifest = prepare("fashion-mnist", tmp_path / "out", resolutions=[8], limit=20, workers=0)
    assert (manifest.source, manifest.counts.train, manifest.counts.val) == ("fashion-mnist", 20, 20)
    data = PreparedData.open(tmp_path / "out")
    assert data.class_names is not None
    assert data.class_names[8] == "Bag"
    assert data.split("train").labels.tolist() == [*range(10), *range(10)]


def test_small_images(class_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ant/0.png: 20x16 pixels, too small for resolution 18"):
        prepare(str(class_folder), tmp_path / "out", resolutions=[8, 18], skip_bad=True, workers=0)
    manifest = prepare(str(class_folder), tmp_path / "out", resolutions=[8, 18], allow_upscale=True, workers=0)
    assert manifest.upscaled == 6
    assert "bicubic" in manifest.resize
    assert PreparedData.open(tmp_path / "out").split("train").images(18).shape == (9, 18, 18, 3)


BAD_FILES = {"ant/1.png": "truncated", "bee/0.png": "text", "cat/1.png": "empty"}


def spoil(folder: Path) -> None:
    for name, how in BAD_FILES.items():
        path = folder / name
        content = path.read_bytes()
        path.write_bytes({"truncated": content[:-300], "text": b"<html>", "empty": b""}[how])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_stop_the_run_and_are_named(class_folder: Path, tmp_path: Path, workers: int) -> None:
    for name in BAD_FILES:
        whole = (class_folder / name).read_bytes()
        (class_folder / name).write_bytes(whole[:-300])
        with pytest.raises(UserError) as error:
            prepare(str(class_folder), tmp_path / "out", resolutions=[8], workers=workers)
        assert f"{class_folder}/{name}: unreadable image" in str(error.value)
        assert "--skip-bad" in str(error.value)
        (class_folder / name).write_bytes(whole)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_bad_files_are_left_out_and_listed(class_folder: Path, tmp_path: Path) -> None:
    prepare(str(class_folder), tmp_path / "whole", resolutions=[8], workers=0)
    spoil(class_folder)
    notes: list[str] = []
    manifest = prepare(
        str(class_folder), tmp_path / "out", resolutions=[8], skip_bad=True, workers=0, note=notes.append
    )
    assert (manifest.skipped, manifest.counts.train) == (3, 6)
    assert sorted(line.split(":")[0] for line in manifest.skipped_files) == sorted(BAD_FILES)
    assert sorted(notes)[0].startswith(f"skipped {class_folder}/ant/1.png: ")
    out, whole = (PreparedData.open(tmp_path / name).split("train") for name in ("out", "whole"))
    keep = [0, 2, 3, 5, 6, 7]
    np.testing.assert_array_equal(out.images(8), whole.images(8)[keep])
    assert out.labels.tolist() == whole.labels[keep].tolist()


def test_a_limit_is_filled_up_in_place_of_bad_files(class_folder: Path, tmp_path: Path) -> None:
    spoil(class_folder)
    prepare(
        str(class_folder), tmp_path / "out", resolutions=[8], limit=5, skip_bad=True, workers=0, note=lambda _: None
    )
    labels = PreparedData.open(tmp_path / "out").split("train").labels
    assert len(labels) == 5
    assert np.bincount(labels).tolist() == [2, 2, 1]


def test_a_val_folder_of_bad_files_gives_no_val(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "both/val/ant").mkdir(parents=True)
    shutil.copytree(class_folder, tmp_path / "both/train")
    (tmp_path / "both/val/ant/0.png").write_bytes((class_folder / "ant/0.png").read_bytes()[:-300])
    prepare(str(tmp_path / "both"), tmp_path / "out", resolutions=[8], skip_bad=True, workers=0, note=lambda _: None)
    assert PreparedData.open(tmp_path / "out").splits == ["train"]
    assert not (tmp_path / "out/val").exists()


def test_only_bad_files(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.png").write_text("x")
    with pytest.raises(UserError, match="flat: no readable image"):
        prepare(
            str(tmp_path / "flat"), tmp_path / "out", resolutions=[8], skip_bad=True, workers=0, note=lambda _: None
        )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"resolutions": []}, "resolutions: none given"),
        ({"resolutions": [0]}, "resolutions: 0; give distinct whole numbers from 1 to 4096"),
        ({"resolutions": [8, 4097]}, "resolutions: 4097"),
        ({"resolutions": [8, 8]}, "resolutions: 8 is given twice"),
        ({"resolutions": [8.0]}, "resolutions: 8.0"),
        ({"resolutions": [True]}, "resolutions: True"),
        ({"val": 0.0}, "val: 0.0; give a fraction above 0 and below 1"),
        ({"val": 1.0}, "val: 1.0"),
        ({"val": float("nan")}, "val: nan"),
        ({"limit": 0}, "limit: 0; give 1 or more"),
        ({"workers": -2}, "workers: -2"),
    ],
)
def test_wrong_arguments(class_folder: Path, tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        prepare(str(class_folder), tmp_path / "out", **({"resolutions": [8]} | arguments))  # type: ignore[arg-type]
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_same_again_does_nothing(class_folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    first = prepare(str(class_folder), tmp_path / "out", resolutions=[8, 16], val=0.5, workers=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = prepare(str(class_folder), tmp_path / "out", resolutions=[16, 8], val=0.5, workers=2, note=notes.append)
    assert again == first
    assert notes == [f"{tmp_path / 'out'}: already prepared, nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_anything_else_into_the_same_folder_is_refused(class_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(str(class_folder), out, resolutions=[8], workers=0)
    before = (out / "manifest.json").read_bytes()
    for arguments, message in [
        ({"resolutions": [8, 16]}, "resolutions [8], not [8, 16]"),
        ({"val": 0.5}, "val None, not 0.5"),
        ({"limit": 3}, "limit None, not 3"),
        ({"skip_bad": True}, "skip_bad False, not True"),
    ]:
        with pytest.raises(UserError) as error:
            prepare(str(class_folder), out, workers=0, **({"resolutions": [8]} | arguments))  # type: ignore[arg-type]
        assert message in str(error.value)
    (class_folder / "ant/3.png").unlink()
    with pytest.raises(UserError, match="a source with other files"):
        prepare(str(class_folder), out, resolutions=[8], workers=0)
    assert (out / "manifest.json").read_bytes() == before


def test_a_damaged_result_is_not_called_prepared(class_folder: Path, tmp_path: Path) -> None:
    prepare(str(class_folder), tmp_path / "out", resolutions=[8], workers=0)
    (tmp_path / "out/train/images_8.npy").unlink()
    with pytest.raises(UserError, match=r"images_8.npy: missing"):
        prepare(str(class_folder), tmp_path / "out", resolutions=[8], workers=0)


STOPPED_RUN = """
import sys, time
from pathlib import Path
from cascaded_diffusion.data.prepare import prepare

def stop(what, done, total):
    if what == "writing train" and 0 < done < total:
        print("in the middle", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), resolutions=[4, 16], workers=int(sys.argv[3]), progress=stop)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_and_run_again(mixed_folder: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "script.py").write_text(STOPPED_RUN)
    out = tmp_path / "results/out"
    arguments = [sys.executable, tmp_path / "script.py", mixed_folder, out, str(workers)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "in the middle\n"
        run.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert (tmp_path / "results/.out.preparing/train/images_16.npy").exists()
    prepare(str(mixed_folder), out, resolutions=[4, 16], workers=0)
    prepare(str(mixed_folder), tmp_path / "uninterrupted", resolutions=[4, 16], workers=0)
    assert same_files(out, tmp_path / "uninterrupted")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_preparing_does_not_import_torch(class_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cascaded_diffusion.data.prepare import prepare\n"
        "prepare(sys.argv[1], Path(sys.argv[2]), resolutions=[8], workers=0)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, class_folder, tmp_path / "out"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
