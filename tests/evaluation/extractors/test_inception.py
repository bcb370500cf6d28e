"""Inception by way of torch-fidelity, of which a small double stands in here."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.extractors import inception
from cascaded_diffusion.evaluation.features import extract, load_extractor, score_key
from cascaded_diffusion.evaluation.resizing import resize_bicubic

CPU = torch.device("cpu")


class Double(nn.Module):
    """Called like ``torch_fidelity.FeatureExtractorInceptionV3`` and as particular about its input."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None) -> None:
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.spread, self.fc = nn.Linear(3, 2048), nn.Linear(2048, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, 299, 299)
        features = self.spread(x.float().mean((2, 3)))
        return features, features @ self.fc.weight.T


@pytest.fixture
def _torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = Double  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {"spread.weight": torch.randn(2048, 3), "spread.bias": torch.randn(2048)}
    path = tmp_path / "weights.pth"
    torch.save(state | {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}, path)
    return path


def _publish(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", digest)
    return digest


def test_the_published_hash_begins_as_the_file_is_called() -> None:
    assert inception.WEIGHTS_SHA256.startswith("6726825d")
    assert len(inception.WEIGHTS_SHA256) == 64


@pytest.mark.usefixtures("_torch_fidelity")
def test_the_published_weights_give_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(weights, monkeypatch)
    extractor = load_extractor(f"inception:{weights}", device=CPU)
    assert (extractor.name, score_key("fd", extractor.name)) == ("inception", "fid")
    assert extractor.resize == "299x299, antialiased bicubic, rounded to uint8"
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = extract(extractor, images, batch_size=2)
    assert found.logits is not None
    assert (found.features.shape, found.logits.shape) == ((3, 2048), (3, 1008))
    state = torch.load(weights, weights_only=True)
    mean = resize_bicubic(images, 299).round().mean((2, 3))
    torch.testing.assert_close(found.features, mean @ state["spread.weight"].T + state["spread.bias"])


@pytest.mark.usefixtures("_torch_fidelity")
def test_other_weights_are_refused_or_never_called_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is not that of the published Inception weights \(6726825d.*not be FID"):
        load_extractor(f"inception:{weights}", device=CPU)
    unchecked = load_extractor(f"inception:{weights}?unchecked=1", device=CPU)
    assert (unchecked.name, score_key("fid", unchecked.name)) == ("inception-unchecked", "fd_inception-unchecked")
    _publish(weights, monkeypatch)
    assert load_extractor(f"inception:{weights}?unchecked=1", device=CPU).name == "inception-unchecked"


@pytest.mark.usefixtures("_torch_fidelity")
def test_grey_images_are_repeated(weights: Path) -> None:
    extractor = load_extractor(f"inception:{weights}?unchecked=1", device=CPU)
    grey = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    assert torch.equal(extractor(grey).features, extractor(np.repeat(grey, 3, axis=-1)).features)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.usefixtures("_torch_fidelity")
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"spread.weight": _Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap.pth: not a file of weights"):
        load_extractor(f"inception:{tmp_path / 'trap.pth'}?unchecked=1", device=CPU)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.usefixtures("_torch_fidelity")
@pytest.mark.parametrize("content", [b"", b"not weights", "another network", "not a dict"])
def test_files_of_something_else_are_refused(content: bytes | str, tmp_path: Path) -> None:
    if isinstance(content, str):
        buffer = io.BytesIO()
        torch.save({"weight": torch.zeros(2)} if content == "another network" else [1, 2], buffer)
        content = buffer.getvalue()
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"x.pth: not "):
        load_extractor(f"inception:{tmp_path / 'x.pth'}?unchecked=1", device=CPU)


def test_missing_things_are_told(weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("inception", "inception:", "inception:?unchecked=1"):
        with pytest.raises(UserError, match="inception needs the weights' path"):
            load_extractor(name, device=CPU)
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file"):
        load_extractor(f"inception:{tmp_path}/nowhere.pth", device=CPU)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"needs torch-fidelity .*docs/evaluation.md"):
        load_extractor(f"inception:{weights}?unchecked=1", device=CPU)
    monkeypatch.setattr(inception, "_LARGEST_FILE", 100)
    with pytest.raises(UserError, match="at most 100 are read"):
        load_extractor(f"inception:{weights}", device=CPU)
