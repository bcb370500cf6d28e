"""From pictures to samples: ``cdm prepare``, ``train``, ``assemble`` and ``sample``, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data.prepared import PreparedData

Done = Callable[..., Any]

SMALL = [
    "network.channels=32",
    "network.multipliers=[1,1]",
    "network.blocks=1",
    "network.attention=[]",
    "network.patch=2",
    "training.batch_size=8",
    "training.ema_half_lives=[16]",
    "training.preview_every=16",
    "training.preview_count=2",
    "sampling.steps=3",
]
"""What makes a stage of a packaged recipe a matter of seconds."""


def picture(i: int, generator: np.random.Generator) -> np.ndarray:
    """A photograph-like picture, uint8 (H, W, 3): a gradient, soft blobs and a little noise, no two of one size."""
    height, width = generator.integers(64, 100, 2)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    sky = np.array([60, 120, 220]) if i % 2 else np.array([60, 160, 70])
    colour = sky + (y[..., None] * generator.integers(-60, 61, 3))
    for _ in range(3):
        centre, size = generator.uniform(0, 1, 2), generator.uniform(0.05, 0.3)
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / size**2)
        colour = colour + blob[..., None] * generator.integers(-120, 121, 3)
    return (colour + generator.normal(0, 6, colour.shape)).clip(0, 255).astype(np.uint8)


def save_in_some_format(pixels: np.ndarray, stem: Path, i: int) -> None:
    image = Image.fromarray(pixels)
    match i % 10:
        case 0:
            image.save(f"{stem}.jpg", quality=90)
        case 1:
            exif = Image.Exif()
            exif[0x0112] = 6  # shown turned by 90 degrees
            image.save(f"{stem}.jpeg", exif=exif)
        case 2:
            image.quantize(64).save(f"{stem}.png")
        case 3:
            alpha = np.linspace(0, 255, pixels.shape[1]).astype(np.uint8)
            image.putalpha(Image.fromarray(np.tile(alpha, (pixels.shape[0], 1))))
            image.save(f"{stem}.png")
        case 4:
            image.convert("CMYK").save(f"{stem}.jpg")
        case 5:
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(f"{stem}.png")
        case 6:
            image.save(f"{stem}.webp")
        case 7:
            image.quantize(128).save(f"{stem}.gif")
        case 8:
            image.save(f"{stem}.bmp")
        case _:
            image.save(f"{stem}.TIFF")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures in the class folders field and sky."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(200):
        folder = root / ("sky" if i % 2 else "field")
        folder.mkdir(exist_ok=True)
        save_in_some_format(picture(i, generator), folder / f"{i:03d}", i // 2)
    return root


def train_and_assemble(done: Done, recipe: object, data: Path, work: Path, *stages: str) -> Path:
    for stage in stages:
        changes = [word for setting in SMALL for word in ("--set", setting)]
        options = ("--stage", stage, "--data", data, "--out", work / stage, "--max-images", 16, "--device", "cpu")
        result = done("train", recipe, *options, *changes)
        assert f"{stage}: 16 images seen" in result.out
        assert len(list((work / stage / "previews").iterdir())) == 1
    done("assemble", work / "cascade", *(work / stage for stage in stages))
    return work / "cascade"


def test_photographs_of_all_formats(done: Done, photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = ("--resolutions", "16,64", "--val", "0.1", "--workers", "0")
    result = done("prepare", photos, data, *options)
    prepared = PreparedData.open(data)
    counts = prepared.manifest.counts
    assert counts.train + counts.val == 200
    assert result.out == (f"{data}: {counts.train} train and {counts.val} val images, colour, 2 classes, at 16, 64\n")
    assert prepared.class_names == ["field", "sky"]
    split = prepared.split("train")
    blue = np.asarray(split.images(16), np.float32)[..., 2].mean((1, 2, 3)[:2])
    assert blue[split.labels == 1].mean() > blue[split.labels == 0].mean() + 40

    folder = train_and_assemble(done, "photos-64", data, tmp_path, "base16", "sr64")
    out = tmp_path / "samples.npz"
    result = done("sample", folder, "--out", out, "--per-class", 2, "--grid", tmp_path / "grid.png")
    with np.load(out) as samples:
        assert samples["arr_0"].shape == (4, 64, 64, 3)
        assert samples["arr_1"].tolist() == [0, 1, 0, 1]
    assert "sr64 dpmpp-2m 3 steps, nontruncated s=0.15" in result.out
    done("sample", folder, "--out", tmp_path / "png", "--classes", "sky")
    with Image.open(tmp_path / "png/sky/000000.png") as image:
        assert (image.mode, image.size) == ("RGB", (64, 64))
    enlarged = tmp_path / "enlarged.npz"
    done("sample", folder, "--out", enlarged, "--from-images", photos / "sky/001.jpg")
    assert np.load(enlarged)["arr_0"].shape == (1, 64, 64, 3)


def test_a_flat_folder(done: Done, refused: Callable[..., str], tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    (tmp_path / "flat").mkdir()
    for i in range(20):
        save_in_some_format(picture(i, generator), tmp_path / f"flat/{i}", i)
    result = done("prepare", tmp_path / "flat", tmp_path / "data", "--resolutions", "16,64", "--workers", "0")
    assert result.out == f"{tmp_path / 'data'}: 20 train and 0 val images, colour, no classes, at 16, 64\n"
    folder = train_and_assemble(done, "photos-64", tmp_path / "data", tmp_path, "base16", "sr64")
    assert json.loads((folder / "cascade.json").read_text())["classes"] is None

    done("sample", folder, "--out", tmp_path / "samples.npz", "--num", 3)
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["arr_0"].shape == (3, 64, 64, 3)
        assert samples["arr_1"].tolist() == [-1, -1, -1]
    done("sample", folder, "--out", tmp_path / "one.npz")
    assert np.load(tmp_path / "one.npz")["arr_0"].shape == (1, 64, 64, 3)
    done("sample", folder, "--out", tmp_path / "png", "--per-class", 2, "--grid", tmp_path / "grid.png")
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["000000.png", "000001.png"]

    sample = ("sample", folder, "--out", tmp_path / "x.npz")
    line = refused(*sample, "--classes", "sky,1")
    assert line == "classes: this cascade has no classes, sky, 1 cannot be asked for"
    line = refused(*sample, "--guidance", "2")
    assert "guidance: 2.0 has no effect here: base16 has no classes to be guided by" in line
    given = tmp_path / "given.npz"
    np.savez(given, np.zeros((2, 16, 16, 3), np.uint8), np.array([1, 0]))
    done(*sample, "--from-images", given)
    assert np.load(tmp_path / "x.npz")["arr_1"].tolist() == [-1, -1]


def test_three_stages_with_noise_then_blur(done: Done, cascade: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    for options in ((), ("--augmentation", "truncated", "--s", "0.3"), ("--augmentation", "none")):
        result = done(
            "sample", cascade, "--out", out, "--num", 4, "--stages", tmp_path / "-".join(["s", *options]), *options
        )
        assert np.load(out)["arr_0"].shape == (4, 32, 32, 1)
        words = {"truncated": ", truncated s=0.3", "none": ""}.get("".join(options[1:2]), ", nontruncated s=0.2")
        start = f"{out}: 4 images of 32x32 pixels; base8 ddim 5 steps; sr16 ddim 4 steps{words}; sr32 ddim"
        assert result.out.startswith(start)


def test_colour_npz_and_back(done: Done, refused: Callable[..., str], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images, np.arange(12) % 2)
    done("prepare", tmp_path / "images.npz", tmp_path / "data", "--resolutions", "16")
    folder = train_and_assemble(done, "photos-64", tmp_path / "data", tmp_path, "base16")
    done("sample", folder, "--out", tmp_path / "samples.npz", "--num", 4, "--rgb")
    # What was sampled is a source of images, as is any .npz.
    done("prepare", tmp_path / "samples.npz", tmp_path / "again", "--resolutions", "8,16")
    assert PreparedData.open(tmp_path / "again").classes == 2
    line = refused("train", "photos-64", "--stage", "sr64", "--data", tmp_path / "data", "--out", tmp_path / "sr64")
    assert "no images of resolution 64; it has 16" in line
