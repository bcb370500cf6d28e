"""How images are brought to an extractor's network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.extractors.base import NetworkExtractor, NetworkInput, match_channels
from cascaded_diffusion.evaluation.resizing import resize_bicubic

CPU = torch.device("cpu")


class Pixels(NetworkExtractor):
    """The pixels themselves are the features."""

    def __init__(self, size: int | None = 4, channels: int = 3, at_once: int = 64, scaling: str = "none") -> None:
        super().__init__(
            "pixels",
            weights_hash="0" * 64,
            network_input=NetworkInput(size, channels, at_once),
            device=CPU,
            scaling=scaling,
        )
        self.batches: list[int] = []

    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        self.batches.append(len(pixels))
        return pixels.flatten(1), None


def _images(side: int = 8, channels: int = 3, count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def test_images_are_resized_and_never_more_at_once_than_fit() -> None:
    extractor = Pixels(at_once=2)
    found = extractor(_images())
    assert extractor.batches == [2, 2, 1]
    assert found.logits is None
    torch.testing.assert_close(found.features, resize_bicubic(_images(), 4).flatten(1))


def test_images_go_through_as_they_are_without_a_size() -> None:
    found = Pixels(size=None)(_images())
    assert np.array_equal(found.features.reshape(5, 3, 8, 8).numpy(), _images().transpose(0, 3, 1, 2))


def test_products_are_exact_whatever_the_caller_allows() -> None:
    seen = []

    class Watching(Pixels):
        def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
            seen.append(torch.get_float32_matmul_precision())
            return super().compute(pixels)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        Watching()(_images())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]


def test_grey_is_repeated_and_colour_averaged() -> None:
    grey = _images(channels=1)
    assert torch.equal(Pixels()(grey).features, Pixels()(np.repeat(grey, 3, axis=-1)).features)
    colour = _images(side=4)
    found = Pixels(channels=1)(colour).features.reshape(5, 4, 4)
    np.testing.assert_allclose(found.numpy(), colour.mean(-1), rtol=1e-6)


def test_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="images: 4 channels; this extractor takes grey or RGB"):
        Pixels()(_images(channels=4))
    with pytest.raises(UserError, match="images: 2 channels"):
        match_channels(torch.zeros(1, 2, 4, 4), 1)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 6, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_other_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"images: .*; an extractor takes uint8 \(N, R, R, C\) with square images"):
        Pixels()(images)


def test_the_hash_depends_on_whatever_changes_the_features() -> None:
    hashes = {e.content_hash for e in (Pixels(), Pixels(size=5), Pixels(scaling="[0, 1]"))}
    assert len(hashes) == 3
    assert Pixels().content_hash == Pixels().content_hash
    assert all(len(digest) == 64 for digest in hashes)


def test_features_are_computed_in_fp32_whatever_is_set_outside() -> None:
    class Product(Pixels):
        def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
            assert not torch.is_grad_enabled()
            return pixels.flatten(1) @ torch.ones(48, 2, requires_grad=True), None

    plain = Product()(_images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Product()(_images()).features, plain.features)
    assert not plain.features.requires_grad


def test_features_that_are_not_finite_are_not_passed_on() -> None:
    class Broken(Pixels):
        def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
            return pixels.flatten(1) * float("nan"), None

    with pytest.raises(RuntimeError, match="pixels: features that are not finite"):
        Broken()(_images())
