"""What ``cdm sample`` writes, and that each option acts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion import samples
from cascaded_diffusion.cascade import sample_store, walk
from cascaded_diffusion.cli.sample import _check_places
from cascaded_diffusion.networks.unet import UNet

Done = Callable[..., Any]


@pytest.fixture
def sampled(done: Done, cascade: Path, tmp_path: Path) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """``sampled("--num", 3)``: the images and labels that the command wrote."""

    def sample(*options: object) -> tuple[np.ndarray, np.ndarray]:
        out = tmp_path / "samples.npz"
        done("sample", cascade, "--out", out, "--device", "cpu", *options)
        with np.load(out) as file:
            assert sorted(file) == ["arr_0", "arr_1"]
            images, labels = file["arr_0"], file["arr_1"]
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        assert labels.shape == (len(images),)
        return images, labels

    return sample


Sampled = Callable[..., tuple[np.ndarray, np.ndarray]]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_npz(sampled: Sampled) -> None:
    images, labels = sampled()
    assert images.shape == (3, 32, 32, 1)
    assert labels.tolist() == [0, 1, 2]


def test_rgb(sampled: Sampled) -> None:
    grey, _ = sampled()
    images, _ = sampled("--rgb")
    assert images.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(images, np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize(
    "options, labels",
    [
        ("--num 5", [0, 1, 2, 0, 1]),
        ("--classes Shoe,0 --num 3", [2, 0, 2]),
        ("--classes Shoe,Bag", [2, 0]),
        ("--per-class 2", [0, 1, 2, 0, 1, 2]),
        ("--classes Hat --per-class 3", [1, 1, 1]),
    ],
)
def test_classes_and_numbers(sampled: Sampled, options: str, labels: list[int]) -> None:
    images, found = sampled("--until", "base8", *options.split())
    assert found.tolist() == labels
    assert images.shape == (len(labels), 8, 8, 1)


def test_seed_and_batch_size(sampled: Sampled) -> None:
    first, _ = sampled("--num", 5, "--seed", 3)
    for size in ("1", "2", "5", "auto"):
        again, _ = sampled("--num", 5, "--seed", 3, "--batch-size", size)
        assert np.abs(again.astype(int) - first).max() <= 1
    longer, _ = sampled("--num", 7, "--seed", 3)
    assert np.abs(longer[:5].astype(int) - first).max() <= 1
    other, _ = sampled("--num", 5, "--seed", 4)
    assert (other != first).mean() > 0.5


@pytest.mark.parametrize(
    "option",
    [
        "--steps base8=2",
        "--steps 3",
        "--steps base8=2,3,sr16=5",
        "--sampler heun",
        "--sampler sr32=ancestral",
        "--augmentation none",
        "--augmentation truncated",
        "--s 0.6",
        "--s sr16=0",
        "--guidance 3",
        "--guidance base8=0",
    ],
)
def test_every_setting_acts(sampled: Sampled, option: str) -> None:
    usual, _ = sampled()
    changed, _ = sampled(*option.split())
    assert (changed != usual).any()


def test_the_defaults_by_name_change_nothing(sampled: Sampled) -> None:
    usual, _ = sampled()
    options = "--steps base8=5,sr16=4,sr32=4 --sampler ddim --augmentation sr16=nontruncated --s 0.2 --guidance 1"
    same, _ = sampled(*options.split())
    np.testing.assert_array_equal(same, usual)


def test_precision(sampled: Sampled) -> None:
    images, _ = sampled("--precision", "bf16", "--num", 1)
    exact, _ = sampled("--num", 1)
    assert np.abs(images.astype(int) - exact).mean() < 8


def test_compile(sampled: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def recorded(network: UNet, choice: str, device: object) -> UNet:
        asked.append(choice)
        return network

    monkeypatch.setattr("cascaded_diffusion.cascade.stage.cuda_graphs", recorded)
    plain, _ = sampled("--num", 1)
    assert asked == []
    images, _ = sampled("--num", 1, "--compile", "on")
    assert asked == ["on"] * 3
    np.testing.assert_array_equal(images, plain)


def test_png_folder(done: Done, sampled: Sampled, cascade: Path, tmp_path: Path) -> None:
    images, _ = sampled("--num", 4)
    result = done("sample", cascade, "--out", tmp_path / "images", "--num", 4)
    assert files(tmp_path / "images") == ["Bag/000000.png", "Bag/000003.png", "Hat/000001.png", "Shoe/000002.png"]
    with Image.open(tmp_path / "images/Bag/000003.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), images[3, ..., 0])
    assert result.out == (
        f"{tmp_path / 'images'}: 4 images of 32x32 pixels; base8 ddim 5 steps; "
        "sr16 ddim 4 steps, nontruncated s=0.2; sr32 ddim 4 steps\n"
    )


def test_class_names_that_are_no_file_names(done: Done, relabelled: Callable[..., Path], tmp_path: Path) -> None:
    folder = relabelled(class_names=("T-shirt/top", "..", "a:b?"))
    done("sample", folder, "--out", tmp_path / "images", "--classes", "T-shirt/top,..,a:b?", "--until", "base8")
    assert files(tmp_path / "images") == ["T-shirt-top/000000.png", "a-b-/000002.png", "class/000001.png"]


def test_classes_without_names(done: Done, relabelled: Callable[..., Path], tmp_path: Path) -> None:
    folder = relabelled(class_names=None)
    done("sample", folder, "--out", tmp_path / "images", "--classes", "2,0", "--grid", tmp_path / "grid.png")
    assert files(tmp_path / "images") == ["0/000001.png", "2/000000.png"]


def test_grid(done: Done, cascade: Path, tmp_path: Path) -> None:
    result = done("sample", cascade, "--out", tmp_path / "x.npz", "--per-class", 2, "--grid", tmp_path / "new/grid.png")
    with Image.open(tmp_path / "new/grid.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 2 * 64
        assert picture.height > 3 * 64
    assert f"{tmp_path / 'new/grid.png'}: a picture of them\n" in result.out


def test_stages(done: Done, sampled: Sampled, cascade: Path, tmp_path: Path) -> None:
    done("sample", cascade, "--out", tmp_path / "x.npz", "--stages", tmp_path / "stages")
    names = ["Bag/000000", "Hat/000001", "Shoe/000002"]
    expected = [f"{stage}/{name}.png" for stage in ("base8", "sr16", "sr32") for name in names]
    assert files(tmp_path / "stages") == expected
    for stage, side in (("base8", 8), ("sr16", 16), ("sr32", 32)):
        images, _ = sampled("--until", stage)
        with Image.open(tmp_path / f"stages/{stage}/Hat/000001.png") as picture:
            assert picture.size == (side, side)
            np.testing.assert_array_equal(np.asarray(picture), images[1, ..., 0])


def test_truncated_stages_are_marked(done: Done, cascade: Path, tmp_path: Path) -> None:
    options = ("--augmentation", "truncated", "--s", "0.5", "--num", "1")
    result = done("sample", cascade, "--out", tmp_path / "x.npz", "--stages", tmp_path / "stages", *options)
    assert files(tmp_path / "stages") == [
        "base8/Bag/000000-predicted-z0.png",
        "sr16/Bag/000000.png",
        "sr32/Bag/000000.png",
    ]
    assert "truncated s=0.5" in result.out


def test_until(sampled: Sampled) -> None:
    images, _ = sampled("--until", "sr16")
    assert images.shape == (3, 16, 16, 1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures, one landscape and one portrait, in a folder with other files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    ramp = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)
    Image.fromarray(ramp).save(folder / "a.png")
    Image.fromarray(np.stack([ramp.T] * 3, axis=-1)).save(folder / "b.jpg")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_from_images(sampled: Sampled, pictures: Path) -> None:
    images, labels = sampled("--from-images", pictures)
    assert images.shape == (2, 32, 32, 1)
    assert labels.tolist() == [-1, -1]
    one, labels = sampled("--from-images", pictures / "a.png", "--classes", "Hat", "--start-stage", "sr16")
    assert one.shape == (1, 32, 32, 1)
    assert labels.tolist() == [1]
    last, _ = sampled("--from-images", pictures, "--start-stage", "sr32")
    assert last.shape == (2, 32, 32, 1)
    low, _ = sampled("--from-images", pictures, "--until", "sr16")
    assert low.shape == (2, 16, 16, 1)


def test_from_npz(sampled: Sampled, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    given = generator.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "given.npz", arr_0=given, arr_1=np.array([2, 0, 2]))
    images, labels = sampled("--from-images", tmp_path / "given.npz", "--s", "0")
    assert images.shape == (3, 32, 32, 1)
    assert labels.tolist() == [2, 0, 2]
    single, _ = sampled("--from-images", tmp_path / "given.npz", "--s", "0", "--batch-size", "1")
    assert np.abs(single.astype(int) - images).max() <= 1


def test_a_stage_continues_what_another_call_made(sampled: Sampled, tmp_path: Path) -> None:
    whole, labels = sampled("--augmentation", "none")
    low, _ = sampled("--until", "base8")
    np.savez(tmp_path / "low.npz", arr_0=low, arr_1=labels)
    rest, _ = sampled("--from-images", tmp_path / "low.npz", "--augmentation", "none")
    assert np.abs(rest.astype(int) - whole).mean() < 4  # the images in the file are rounded to 8 bits


def test_out_may_be_an_empty_folder_or_replace_a_file(done: Done, cascade: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done("sample", cascade, "--out", tmp_path / "empty", "--until", "base8")
    assert len(files(tmp_path / "empty")) == 3
    (tmp_path / "x.npz").write_text("old")
    done("sample", cascade, "--out", tmp_path / "x.npz", "--until", "base8")
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (3, 8, 8, 1)


def _stop_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int, error: BaseException) -> None:
    original, calls = getattr(module, name), iter(range(call))

    def stopped(*arguments: Any, **options: Any) -> Any:
        if next(calls, call) == call - 1:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, stopped)


def test_batch_sizes_of_single_stages(sampled: Sampled, refused: Callable[..., str], cascade: Path) -> None:
    first, _ = sampled("--num", 5)
    again, _ = sampled("--num", 5, "--batch-size", "base8=4,sr32=1")
    assert np.abs(again.astype(int) - first).max() <= 1
    command = ("sample", cascade, "--out", "x.npz", "--device", "cpu")
    assert "batch_size: no stage 'sr64' in use" in refused(*command, "--batch-size", "sr64=4")
    assert "--batch-size: '0' is not allowed" in refused(*command, "--batch-size", "base8=0")
    assert "offload: cpu holds all stages anyway" in refused(*command, "--offload")


def test_interrupted_and_started_again(
    cdm: Done, done: Done, sampled: Sampled, cascade: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start makes only what is missing; images are those of one go, and nothing is left over."""
    expected, _ = sampled("--num", 6, "--batch-size", 2)
    options = ("--out", here / "again" / "x.npz", "--num", 6, "--batch-size", 2, "--device", "cpu")
    with monkeypatch.context() as patched:
        _stop_at(patched, walk, "_sample_batch", 3, KeyboardInterrupt())
        result = cdm("sample", cascade, *options)
    assert result.status == 130
    assert "4 of 6 images are kept; the same command goes on from there" in result.err
    with monkeypatch.context() as patched:
        _stop_at(patched, walk, "_sample_batch", 2, AssertionError("made again"))
        result = done("sample", cascade, *options)
    assert "samples: 6 of 6" in result.err
    assert np.array_equal(np.load(here / "again" / "x.npz")["arr_0"], expected)
    assert files(here / "again") == ["x.npz"]
    assert [path.name for path in (here / "again").iterdir()] == ["x.npz"]


def test_killed_between_its_results_and_started_again(
    cdm: Done, done: Done, refused: Callable[..., str], cascade: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first start wrote is accepted by the second; a file that it did not write is not."""
    common = ("--num", 4, "--batch-size", 2, "--device", "cpu", "--until", "sr16")
    done("sample", cascade, *common, "--out", "whole", "--stages", "whole-stages")
    options = ("sample", cascade, *common, "--out", "pictures", "--stages", "stages")
    for module, name, call in ((samples, "new_folder", 3), (sample_store, "_remove", 1)):
        with monkeypatch.context() as patched:
            _stop_at(patched, module, name, call, SystemExit(143))
            assert cdm(*options).status == 143
    assert files(here / "stages") == files(here / "whole-stages")
    (here / "pictures" / "mine.txt").touch()
    assert "pictures: already there and not an empty folder" in refused(*options)
    (here / "pictures" / "mine.txt").unlink()
    done(*options)
    for made, whole in (("pictures", "whole"), ("stages", "whole-stages")):
        assert files(here / made) == files(here / whole)
        assert all(
            (here / made / name).read_bytes() == (here / whole / name).read_bytes() for name in files(here / made)
        )
    assert sorted(path.name for path in here.iterdir()) == ["pictures", "stages", "whole", "whole-stages"]
    assert "pictures: already there and not an empty folder" in refused(*options)


def test_a_packaged_name_wins_and_says_so(
    done: Done, refused: Callable[..., str], here: Path, cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascaded_diffusion.cascade.find.packaged_cascades", lambda: {"demo": cascade})
    assert "packaged" not in done("sample", "demo", "--out", "a.npz").err
    (here / "demo").mkdir()
    result = done("sample", "demo", "--out", "a.npz")
    assert result.err.startswith("demo: the packaged cascade is used, not what has this name here (write ./demo")
    assert np.load("a.npz")["arr_0"].shape == (3, 32, 32, 1)
    assert "demo: not a cascade (no cascade.json)" in refused("sample", "./demo", "--out", "a.npz")
    assert "'demos' is neither a folder nor packaged (demo); did you mean demo?" in refused(
        "sample", "demos", "--out", "a.npz"
    )


def test_cascade_json(cascade: Path) -> None:
    manifest = json.loads((cascade / "cascade.json").read_text())
    assert manifest["format_version"] == 1
    assert [(stage["name"], stage["folder"]) for stage in manifest["stages"]] == [
        (name, name) for name in ("base8", "sr16", "sr32")
    ]
    assert [stage["truncated"] for stage in manifest["stages"]] == [False, True, False]
    assert manifest["class_names"] == ["Bag", "Hat", "Shoe"]
    for stage in manifest["stages"]:
        assert sorted(stage["sha256"]) == ["config.json", "model.safetensors"]
        assert sorted(path.name for path in (cascade / stage["name"]).iterdir()) == sorted(stage["sha256"])


def test_any_setting_of_a_stage(sampled: Sampled, done: Done, refused: Any, cascade: Path, tmp_path: Path) -> None:
    usual, _ = sampled("--num", 3)
    changed, _ = sampled("--num", 3, "--set", "sr16.start=0.5", "--set", "base8.clip=false")
    assert not np.array_equal(usual, changed)
    told = done("sample", cascade, "--out", tmp_path / "y.npz", "--num", "1", "--set", "sr16.start=0.5")
    assert "from time 0.5" in told.out + told.err
    assert "set: sr16.s has an option of its own" in refused(
        "sample", cascade, "--out", tmp_path / "z.npz", "--set", "sr16.s=0.2"
    )


def test_a_new_folder_may_have_a_dot_in_its_name(here: Path, refused: Any) -> None:
    _check_places(here / "large_s0.1", None, None)
    assert "--out: x.PNG ends in .PNG" in refused("sample", "demo", "--num", 1, "--out", "x.PNG")
