"""The classifiers: shapes, sizes, and their folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.classifier import (
    Classifier,
    ClassifierConfig,
    classifier_hash,
    default_architecture,
    load_classifier,
    save_classifier,
)


def config(**changes: Any) -> ClassifierConfig:
    plain = {"architecture": "small", "resolution": 8, "channels": 3, "classes": 4}
    return ClassifierConfig.model_validate(plain | changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_classifier(Classifier(config()).eval(), tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.mark.parametrize("resolution", [4, 8, 16, 20, 32, 48, 63])
def test_small_network_takes_every_size_below_64(resolution: int) -> None:
    classifier = Classifier(config(resolution=resolution)).eval()
    x = torch.rand(2, 3, resolution, resolution)
    assert classifier.features(x).shape == (2, classifier.dimensions) == (2, 128)
    assert classifier(x).shape == (2, 4)


def test_small_network_looks_at_the_whole_picture() -> None:
    classifier = Classifier(config(resolution=32)).eval()
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    classifier(x).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(dim=(0, 1)) > 0).float().mean() > 0.9


def test_resnet50_has_the_published_size() -> None:
    with torch.device("meta"):
        network = Classifier(config(architecture="resnet50", resolution=224, classes=1000))
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert network.dimensions == 2048


def test_resnet50_runs_and_starts_as_its_shortcuts() -> None:
    classifier = Classifier(config(architecture="resnet50", resolution=64)).eval()
    assert classifier(torch.rand(1, 3, 64, 64)).shape == (1, 4)
    block = classifier.body[3]  # the second block of the first group: its shortcut is the identity
    x = torch.rand(1, 256, 4, 4)
    assert torch.equal(block(x), x)


def test_architecture_follows_the_resolution() -> None:
    assert [default_architecture(r) for r in (8, 63, 64, 256)] == ["small", "small", "resnet50", "resnet50"]


def test_normalises_by_its_own_mean_and_std() -> None:
    classifier = Classifier(config(mean=0.25, std=0.5))
    assert classifier.normalise(torch.full((1, 3, 8, 8), 0.75)).unique().item() == pytest.approx(1.0)


def test_folder_gives_the_same_answers(saved: Path) -> None:
    torch.manual_seed(0)
    before = Classifier(config()).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_classifier(saved)(x), before(x))


def test_half_is_half_as_large_and_loads_as_float(saved: Path, tmp_path: Path) -> None:
    classifier = load_classifier(saved)
    save_classifier(classifier, tmp_path / "half", half=True)
    full, half = ((folder / "model.safetensors").stat().st_size for folder in (saved, tmp_path / "half"))
    assert half < 0.55 * full
    assert all(p.dtype == torch.float32 for p in load_classifier(tmp_path / "half").parameters())


def test_hash_follows_both_files(saved: Path) -> None:
    first = classifier_hash(saved)
    assert first == classifier_hash(saved)
    assert len(first) == 64
    path = saved / "config.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    second = classifier_hash(saved)
    weights = load_file(saved / "model.safetensors")
    weights["head.bias"] += 1
    save_file(weights, saved / "model.safetensors")
    assert len({first, second, classifier_hash(saved)}) == 3


def test_refuses_to_write_over_something(saved: Path) -> None:
    with pytest.raises(UserError, match="already there"):
        save_classifier(load_classifier(saved), saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"no {name}"):
        load_classifier(saved)


def test_cut_weights_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        load_classifier(saved)


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["head.bias"]
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        load_classifier(saved)


@pytest.mark.parametrize(
    ("key", "value"), [("classes", 1), ("std", 0), ("architecture", "vgg"), ("class_names", ["a"]), ("depth", 3)]
)
def test_wrong_settings_are_named(saved: Path, key: str, value: object) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=key):
        load_classifier(saved)
