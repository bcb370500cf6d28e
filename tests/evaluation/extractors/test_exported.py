"""A ``.pt2`` file as an extractor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.features import extract, load_extractor

CPU = torch.device("cpu")
SIZE = 6
ALL_IMAGES = ({0: torch.export.Dim("n")},)

Export = Callable[..., str]


class Small(nn.Module):
    """Three features, and two logits if asked for; batch norm, so that train and eval differ."""

    def __init__(self, channels: int = 3, *, classifies: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm = nn.Conv2d(channels, 3, 3), nn.BatchNorm2d(3)
        self.head, self.classifies = nn.Linear(3, 2), classifies

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.norm(self.convolution(images)).mean((2, 3))
        return (features, self.head(features)) if self.classifies else features


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """``export(module, shape, dynamic_shapes)``: the path of the saved file."""

    def save(module: nn.Module, shape: tuple[int, ...] = (2, 3, SIZE, SIZE), dynamic: object = ALL_IMAGES) -> str:
        program = torch.export.export(module, (torch.zeros(shape),), dynamic_shapes=dynamic)
        torch.export.save(program, tmp_path / "small.pt2")
        return str(tmp_path / "small.pt2")

    return save


def _images(side: int = SIZE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, side, side, channels), dtype=np.uint8)


def test_features_and_logits_are_the_modules(export: Export) -> None:
    module = Small().eval()
    extractor = load_extractor(export(module), device=CPU)
    found = extract(extractor, _images(), batch_size=4)
    features, logits = module(torch.from_numpy(_images()).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.logits, logits)
    described = (extractor.name, extractor.resize, extractor.dtype, extractor.class_names)
    assert described == ("small", "6x6, antialiased bicubic", "fp32", None)


def test_features_alone_and_images_of_another_size_and_colour(export: Export) -> None:
    extractor = load_extractor(export(Small(1, classifies=False).eval(), (2, 1, SIZE, SIZE)), device=CPU)
    found = extractor(_images(side=16))
    assert found.logits is None
    assert found.features.shape == (5, 3)


def test_other_weights_have_another_hash(export: Export) -> None:
    first = load_extractor(export(Small().eval()), device=CPU).content_hash
    other = Small().eval()
    with torch.no_grad():
        other.head.bias += 1
    assert load_extractor(export(other), device=CPU).content_hash != first


def test_a_network_in_training_mode_is_found_out(export: Export) -> None:
    path = export(Small().train())
    with pytest.raises(UserError, match=r"depend on the other images of its batch; was it exported without .eval"):
        load_extractor(path, device=CPU)


@pytest.mark.parametrize(
    "shape, dynamic, words",
    [
        ((2, 3, SIZE, SIZE), None, r"its input is \(2, 3, 6, 6\).*dynamic_shapes="),
        ((2, 3, SIZE, SIZE + 1), ALL_IMAGES, "only N dynamic"),
        ((2, 3, SIZE, SIZE), ({0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4)},), "only N dynamic"),
    ],
)
def test_other_inputs_are_refused(export: Export, shape: tuple[int, ...], dynamic: object, words: str) -> None:
    path = export(Small().eval(), shape, dynamic)
    with pytest.raises(UserError, match=words):
        load_extractor(path, device=CPU)


def test_a_file_that_refuses_single_images_is_refused(export: Export) -> None:
    """The last batch may be of any size."""
    path = export(Small().eval(), (4, 3, SIZE, SIZE), ({0: torch.export.Dim("n", min=3)},))
    with pytest.raises(UserError, match="cannot be run"):
        load_extractor(path, device=CPU)


class Maps(nn.Module):
    """What is not a feature vector an image."""

    def forward(self, images: Tensor) -> Tensor:
        return images * 2


class Three(nn.Module):
    """One output too many."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images.mean((2, 3)),) * 3


@pytest.mark.parametrize(
    "module, words", [(Maps(), r"torch.float32 \(3, 3, 6, 6\) for 3 images"), (Three(), "tuple of 3")]
)
def test_other_outputs_are_refused(export: Export, module: nn.Module, words: str) -> None:
    path = export(module)
    with pytest.raises(UserError, match=rf"small.pt2: gives {words}; it must give features \(N, D\)"):
        load_extractor(path, device=CPU)


def test_other_files_are_refused(tmp_path: Path, export: Export) -> None:
    content = Path(export(Small().eval())).read_bytes()
    middle = content.index(b"weight_0") + 200
    spoilt = content[:middle] + bytes(64) + content[middle + 64 :]
    for name, data in {"empty": b"", "text": b"hello", "cut": content[:-100], "spoilt": spoilt}.items():
        (tmp_path / f"{name}.pt2").write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}.pt2: not a file of torch.export.save"):
            load_extractor(str(tmp_path / f"{name}.pt2"), device=CPU)
    torch.save({}, tmp_path / "weights.pt2")
    with pytest.raises(UserError, match="made by something else"):
        load_extractor(str(tmp_path / "weights.pt2"), device=CPU)
    with pytest.raises(UserError, match=r"nowhere\.pt2: no such file"):
        load_extractor(str(tmp_path / "nowhere.pt2"), device=CPU)
