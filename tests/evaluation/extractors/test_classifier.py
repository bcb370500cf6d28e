"""A classifier as an extractor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascaded_diffusion.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from cascaded_diffusion.evaluation.extractors.classifier import ClassifierExtractor

CPU = torch.device("cpu")


def _config(**changes: object) -> ClassifierConfig:
    settings = {"architecture": "small", "resolution": 8, "channels": 1, "classes": 3, "mean": 0.3, "std": 0.2}
    return ClassifierConfig.model_validate(settings | {"class_names": ("a", "b", "c")} | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_classifier(Classifier(_config()), tmp_path / "mine")
    return tmp_path / "mine"


def _images(side: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, side, side, channels), dtype=np.uint8)


def test_features_and_logits_are_the_classifiers(folder: Path) -> None:
    extractor = ClassifierExtractor(folder, "mine", device=CPU)
    found = extractor(_images())
    x = (torch.from_numpy(_images()).permute(0, 3, 1, 2) / 255 - 0.3) / 0.2
    classifier = extractor.classifier
    torch.testing.assert_close(found.features, classifier.features(x))
    torch.testing.assert_close(found.logits, classifier(x))
    assert (found.features.shape[1], extractor.class_names) == (classifier.dimensions, ("a", "b", "c"))
    assert not classifier.training


def test_other_sizes_and_colours_are_settled(folder: Path) -> None:
    extractor = ClassifierExtractor(folder, "mine", device=CPU)
    grey = _images(side=16)
    assert extractor(grey).features.shape == (3, extractor.classifier.dimensions)
    torch.testing.assert_close(extractor(np.repeat(grey, 3, axis=-1)).features, extractor(grey).features)


def test_the_hash_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    def content_hash(place: Path, name: str = "mine") -> str:
        return ClassifierExtractor(place, name, device=CPU).content_hash

    torch.manual_seed(0)
    save_classifier(Classifier(_config()), tmp_path / "same")
    torch.manual_seed(0)
    save_classifier(Classifier(_config(mean=0.4)), tmp_path / "scaled")
    torch.manual_seed(1)
    save_classifier(Classifier(_config()), tmp_path / "weights")
    first = content_hash(folder)
    assert content_hash(tmp_path / "same", "other-name") == first
    assert first not in (content_hash(tmp_path / "scaled"), content_hash(tmp_path / "weights"))
