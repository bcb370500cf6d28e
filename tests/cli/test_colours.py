"""Class labels survive every path from a folder of pictures to samples, scores and searches.

The classes are plain colours, so that a picture shows its label. Their folders' names sort otherwise than the colours
were made, and the prepared order is that of the names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascaded_diffusion.evaluation import features
from cascaded_diffusion.evaluation.features import Features

Done = Callable[..., Any]

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "amber": (230, 210, 50)}
NAMES = sorted(COLOURS)
IDS = {name: i for i, name in enumerate(NAMES)}

pytestmark = pytest.mark.slow

RECIPE = """
name: colours
flip: true
stages:
  - &stage
    name: base4
    resolution: 4
    network: {channels: 32, multipliers: [1], blocks: 1, heads: 1, middle_attention: false}
    diffusion: {noise_schedule: {timesteps: null}, prediction: v, noise_embedding: angle}
    training:
      {images: 2880, batch_size: 24, learning_rate: 3.0e-3, decay: cosine, decay_start: 0.3, ema_half_lives: [300],
       ema_rampup: null, class_dropout: 0.2, log_every: 1440, preview_every: null, checkpoint_every: 10_000}
    sampling: {sampler: ddim, steps: 8}
  - <<: *stage
    name: sr8
    resolution: 8
    network: {channels: 32, multipliers: [1], blocks: 1, heads: 1, middle_attention: false, patch: 2}
    conditioning: {augmentation: gaussian, s_max: 1.0}
    sampling: {sampler: ddim, steps: 4, augmentation: nontruncated, s: 0.1}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, done: Done) -> Path:
    """A folder with pictures, prepared data and the cascade ``colours`` that was trained on it for some seconds."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            shade = np.clip(np.array(colour) + generator.integers(-12, 13), 0, 255).astype(np.uint8)
            picture = Image.fromarray(np.broadcast_to(shade, (8, 8, 3)).copy())
            picture.save(root / "pictures" / name / f"{i}.png")
    (root / "recipe.yaml").write_text(RECIPE)
    done("prepare", root / "pictures", root / "data", "--resolutions", "4,8", "--val", "0.2", "--workers", "0")
    for stage in ("base4", "sr8"):
        options = ("--stage", stage, "--data", root / "data", "--out", root / stage, "--device", "cpu")
        done("train", root / "recipe.yaml", *options)
    done("assemble", root / "colours", root / "base4", root / "sr8")
    return root


def seen(images: np.ndarray) -> list[str]:
    """The name of the colour that each image is nearest to."""
    mean = images.reshape(len(images), -1, 3).mean(1)
    known = np.array([COLOURS[name] for name in NAMES], float)
    return [NAMES[i] for i in np.linalg.norm(mean[:, None] - known, axis=-1).argmin(1)]


def named(labels: np.ndarray) -> list[str]:
    return [NAMES[label] for label in labels]


def test_prepared(made: Path) -> None:
    assert json.loads((made / "data" / "manifest.json").read_text())["class_names"] == NAMES
    for split in ("train", "val"):
        for resolution in (4, 8):
            folder = made / "data" / split
            assert seen(np.load(folder / f"images_{resolution}.npy")) == named(np.load(folder / "labels.npy"))


MODES = {
    "nontruncated": ("--augmentation", "nontruncated", "--s", "0.1"),
    "truncated": ("--augmentation", "truncated", "--s", "0.2"),
    "clean": ("--augmentation", "none"),
}


@pytest.mark.parametrize("mode", MODES)
def test_sampled_by_name(made: Path, done: Done, here: Path, mode: str) -> None:
    wanted = ["red", "blue", "amber"] * 4
    options = ("--classes", "red,blue,amber", "--num", 12, "--device", "cpu", *MODES[mode])
    done("sample", made / "colours", "--out", "x.npz", "--stages", "stages", *options)
    with np.load("x.npz") as file:
        assert seen(file["arr_0"]) == wanted
        assert named(file["arr_1"]) == wanted
    for stage in ("base4", "sr8"):
        for name in set(wanted):
            files = sorted((here / "stages" / stage / name).iterdir())
            assert [int(path.name[:6]) for path in files] == [i for i, each in enumerate(wanted) if each == name]
            assert seen(np.stack([np.asarray(Image.open(path)) for path in files])) == [name] * len(files)


def test_so_many_of_each_class(made: Path, done: Done, here: Path) -> None:
    done("sample", made / "colours", "--out", "pictures", "--per-class", 3, "--device", "cpu", "--batch-size", 5)
    for name in NAMES:
        pictures = np.stack([np.asarray(Image.open(path)) for path in sorted((here / "pictures" / name).iterdir())])
        assert seen(pictures) == [name] * 3
    done("sample", made / "colours", "--out", "x.npz", "--per-class", 2, "--classes", "green,0", "--device", "cpu")
    with np.load("x.npz") as file:
        assert seen(file["arr_0"]) == named(file["arr_1"]) == ["green", "amber"] * 2


def test_the_samples_can_be_prepared_again(made: Path, done: Done, here: Path) -> None:
    """A folder of samples is a source of class folders, and an .npz one of class numbers."""
    done("sample", made / "colours", "--out", "pictures", "--per-class", 3, "--device", "cpu")
    done("prepare", "pictures", "again", "--resolutions", "4", "--workers", "0")
    assert json.loads((here / "again" / "manifest.json").read_text())["class_names"] == NAMES
    assert seen(np.load("again/train/images_4.npy")) == named(np.load("again/train/labels.npy"))


def test_given_images_bring_their_labels(made: Path, done: Done, here: Path) -> None:
    """At s = 1 nothing is left of the given image: the colour can only come from its label."""
    labels = np.array([IDS[name] for name in ("red", "amber", "green", "blue", "red")])
    np.savez("given.npz", arr_0=np.full((5, 4, 4, 3), 128, np.uint8), arr_1=labels)
    options = ("--augmentation", "nontruncated", "--s", "1", "--device", "cpu", "--batch-size", 2)
    done("sample", made / "colours", "--out", "x.npz", "--from-images", "given.npz", *options)
    with np.load("x.npz") as file:
        assert seen(file["arr_0"]) == named(file["arr_1"]) == named(labels)
    done("sample", made / "colours", "--out", "x.npz", "--from-images", "given.npz", "--classes", "blue", *options)
    with np.load("x.npz") as file:
        assert seen(file["arr_0"]) == named(file["arr_1"]) == ["blue"] * 5


class _Eye:
    """A feature extractor that knows the colours."""

    name, content_hash, resize, dtype = "eye", "e" * 64, "none", "fp32"
    class_names = tuple(NAMES)

    def __call__(self, images: np.ndarray, /) -> Features:
        mean = torch.from_numpy(images.astype(np.float32)).mean(dim=(1, 2))
        return Features(mean / 255, -torch.cdist(mean, torch.tensor([COLOURS[name] for name in NAMES]).float()))


@pytest.fixture
def eye(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the commands look with :class:`_Eye`."""
    monkeypatch.setattr(features, "load_extractor", lambda name, *, device: _Eye())


def test_scored_with_the_labels_that_were_asked_for(made: Path, done: Done, here: Path, eye: None) -> None:
    common = ("--data", made / "data", "--split", "val", "--features", "eye", "--device", "cpu", "--cache", "cache")
    done("evaluate", made / "colours", *common, "--metrics", "recognition", "--num", 12, "--keep", "kept.npz",
         "--json", "right.json")  # fmt: skip
    with np.load("kept.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert seen(images) == named(labels)
    np.savez("wrong.npz", images, (labels + 1) % 4)
    done("evaluate", "wrong.npz", *common, "--metrics", "recognition", "--json", "wrong.json")
    for name, share in (("right", 1.0), ("wrong", 0.0)):
        scores = json.loads((here / f"{name}.json").read_text())["scores"]
        assert [score["value"] for score in scores.values()] == [share], scores


def test_a_search_keeps_labels(made: Path, done: Done, here: Path, eye: None) -> None:
    common = ("--data", made / "data", "--features", "eye", "--device", "cpu", "--cache", "cache", "--out", "out")
    done("search", made / "colours", *common, "--stage", "sr8", "--s", "0,0.2", "--num", 8, "--no-write")
    points = sorted((here / "out" / "points").glob("*.npz"))
    assert len(points) == 3
    for path in [*points, *(here / "out" / "lower").glob("*.npz")]:
        with np.load(path) as file:
            assert seen(file["arr_0"]) == named(file["arr_1"]) == NAMES * 2
