"""``cdm train-classifier``: a folder that scores can be made with, and wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.evaluation import classification
from cascaded_diffusion.evaluation.classifier import load_classifier
from cascaded_diffusion.evaluation.features import extract, load_extractor

Done = Callable[..., Any]


def test_trains_tests_and_describes_itself(done: Done, colour_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "eyes"
    arguments = ("--data", str(colour_folder), "--out", str(out), "--resolution", "4", "--epochs", "2", "--half")
    line = done("train-classifier", *arguments).out
    assert line.startswith(f"{out}: small classifier of 4 classes at 4 pixels; ")
    config = load_classifier(out).config
    assert (config.resolution, config.channels, config.classes) == (4, 3, 4)
    origin = config.provenance
    val = len(PreparedData.open(colour_folder).split("val"))
    assert origin["validation"]["n"] == val
    assert f"{origin['validation']['top1']:.2%} +- " in line
    assert origin["training"]["images"] == 2 * len(PreparedData.open(colour_folder).split("train"))
    assert origin["images_sha256"] in json.loads((colour_folder / "manifest.json").read_text())["files"].values()


def test_the_folder_is_an_extractor(done: Done, colour_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "eyes"
    done("train-classifier", "--data", str(colour_folder), "--out", str(out), "--resolution", "8", "--epochs", "1")
    extractor = load_extractor(str(out), device=torch.device("cpu"))
    images = np.asarray(PreparedData.open(colour_folder).split("val").images(16))
    found = extract(extractor, images)
    assert (extractor.name, extractor.resize) == ("eyes", "8x8, antialiased bicubic")
    assert found.features.shape == (len(images), 128)


def test_compressed_data(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "default_architecture", lambda side: "small")  # not the ResNet-50 of this size
    pictures = np.random.default_rng(0).integers(0, 256, (6, 132, 132, 1), np.uint8)
    np.savez(tmp_path / "grey.npz", arr_0=pictures, arr_1=np.arange(6) % 2)
    prepare(str(tmp_path / "grey.npz"), tmp_path / "data", resolutions=[132], val=0.4, compress=True, workers=0)
    done("train-classifier", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "eyes"), "--epochs", "0.1")
    origin = load_classifier(tmp_path / "eyes").config.provenance
    assert origin["images_sha256"] == PreparedData.open(tmp_path / "data").manifest.files["train/images_132.pack"]
    assert origin["validation"]["n"] > 0


def test_same_command_same_weights(done: Done, colour_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        arguments = ("--data", str(colour_folder), "--out", str(tmp_path / name), "--resolution", "4", "--epochs", "1")
        done("train-classifier", *arguments)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "12"], "no images of resolution 12; it has 4, 8, 16, 32"),
        (["--resolution", "3"], "'3'; allowed: whole numbers from 4"),
        (["--epochs", "-1"], "'-1'; allowed: numbers from 0"),
        (["--device", "abacus"], "--device: 'abacus'"),
    ],
)
def test_wrong_input_is_one_line(
    cdm: Done, colour_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = cdm("train-classifier", "--data", str(colour_folder), "--out", str(tmp_path / "out"), *arguments)
    assert result.status == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_data_without_classes_and_a_filled_folder_are_refused(
    cdm: Done, grey_folder: Path, colour_folder: Path, tmp_path: Path
) -> None:
    result = cdm("train-classifier", "--data", str(grey_folder), "--out", str(tmp_path / "out"))
    assert (result.status, "has no classes to learn" in result.err) == (2, True)
    (tmp_path / "note").write_text("mine")
    result = cdm("train-classifier", "--data", str(colour_folder), "--out", str(tmp_path))
    assert (result.status, "already there" in result.err) == (2, True)
    assert (tmp_path / "note").read_text() == "mine"
