"""Training a classifier: it learns, it repeats itself, and its augmentation does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.evaluation.classification import (
    ClassifierTraining,
    _varied,
    config_for,
    predict,
    train_classifier,
)

CPU = torch.device("cpu")
QUICK = ClassifierTraining(images=1600, batch_size=32, learning_rate=0.02, precision="fp32")


def numbered(count: int = 4, side: int = 16) -> torch.Tensor:
    """Images in which no pixel is black, and no picture is like itself moved, mirrored or turned."""
    return torch.randint(1, 256, (count, side, side, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_learns_the_colours(speckled_data: PreparedData) -> None:
    train, val = speckled_data.split("train"), speckled_data.split("val")
    images = np.asarray(train.images(8))
    classifier = train_classifier(images, train.labels, config_for(images, 4), QUICK, device=CPU)
    logits, features = predict(classifier, np.asarray(val.images(8)), batch_size=5, with_features=True)
    assert np.array_equal(logits.argmax(dim=1).numpy(), val.labels)
    assert features is not None
    assert torch.allclose(classifier.head(features), logits, atol=1e-5)


def test_same_seed_same_weights_and_another_seed_others(speckled_data: PreparedData) -> None:
    train = speckled_data.split("train")
    images, short = np.asarray(train.images(4)), QUICK.model_copy(update={"images": 64})

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(np.random.default_rng().integers(2**31))  # what came before must not matter
        training = short.model_copy(update={"seed": seed})
        return train_classifier(images, train.labels, config_for(images, 4), training, device=CPU).head.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_leaves_the_callers_randomness_alone(speckled_data: PreparedData) -> None:
    train = speckled_data.split("train")
    images = np.asarray(train.images(4))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_classifier(images, train.labels, config_for(images, 4), QUICK.model_copy(update={"images": 32}), device=CPU)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("batch_size", [8, 24, 150])
def test_every_image_is_seen_equally_often(
    speckled_data: PreparedData, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    train = speckled_data.split("train")
    images = np.asarray(train.images(4)).copy()
    images[:, 0, 0, 0] = np.arange(len(images))
    seen: list[int] = []

    def watched(batch: torch.Tensor, index: torch.Tensor, training: ClassifierTraining) -> torch.Tensor:
        seen.extend(batch[:, 0, 0, 0].tolist())
        return batch

    monkeypatch.setattr("cascaded_diffusion.evaluation.classification._varied", watched)
    training = QUICK.model_copy(update={"images": 3 * len(images), "batch_size": batch_size})
    train_classifier(images, train.labels, config_for(images, 4), training, device=CPU)
    assert len(seen) >= 3 * len(images)  # whole batches
    assert np.array_equal(np.bincount(seen[: 3 * len(images)]), np.full(len(images), 3))
    assert seen[: len(images)] != seen[len(images) : 2 * len(images)]


def test_variation_shifts_with_black_and_mirrors() -> None:
    images = numbered(64)
    varied = _varied(images, torch.arange(64), ClassifierTraining())
    assert varied.dtype == torch.uint8
    found = set()
    for before, after in zip(images[..., 0], varied[..., 0], strict=True):
        matches = 0
        for mirrored in (False, True):
            source = before.flip(-1) if mirrored else before
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    expected = torch.zeros_like(source)
                    rows, columns = slice(max(dy, 0), 16 + min(dy, 0)), slice(max(dx, 0), 16 + min(dx, 0))
                    from_rows, from_columns = slice(max(-dy, 0), 16 + min(-dy, 0)), slice(max(-dx, 0), 16 + min(-dx, 0))
                    expected[rows, columns] = source[from_rows, from_columns]
                    if torch.equal(expected, after):
                        found.add((mirrored, dy, dx))
                        matches += 1
        assert matches == 1
    assert len(found) > 14  # of 18
    still = ClassifierTraining(shift=0, flip=False)
    assert torch.equal(_varied(images, torch.arange(64), still), images)


def test_gradients_are_no_longer_than_allowed(speckled_data: PreparedData) -> None:
    train = speckled_data.split("train")
    images = np.asarray(train.images(4))

    def weights(**changes: float | None) -> torch.Tensor:
        training = QUICK.model_copy(update={"images": 64, "weight_decay": 0.0, "momentum": 0.0, **changes})
        return train_classifier(images, train.labels, config_for(images, 4), training, device=CPU).head.weight

    assert not torch.equal(weights(), weights(grad_clip=0.1))
    start = weights(learning_rate=1e-30)
    # Two steps of at most 0.02 times 0.1.
    moved = torch.linalg.vector_norm(weights(grad_clip=0.1) - start)
    assert 0 < moved < 2 * 0.02 * 0.1
    assert torch.linalg.vector_norm(weights(grad_clip=None) - start) > 2 * moved


def test_a_training_that_leads_nowhere_is_an_error_however_short(speckled_data: PreparedData) -> None:
    train = speckled_data.split("train")
    images = np.asarray(train.images(4))
    wild = QUICK.model_copy(update={"images": 320, "learning_rate": 1e30, "grad_clip": None})
    with pytest.raises(RuntimeError, match=r"classifier: its weights are not finite after 320 images"):
        train_classifier(images, train.labels, config_for(images, 4), wild, device=CPU)


def test_learning_rate_rises_and_falls() -> None:
    training = ClassifierTraining(images=1000, learning_rate=0.1, warm_up=0.2)
    assert training.rate(0) == pytest.approx(0.005)
    assert training.rate(200) == pytest.approx(0.1)
    assert training.rate(600) == pytest.approx(0.05)
    assert training.rate(1000) == training.rate(5000) == pytest.approx(0)


def test_settings_come_from_the_images(speckled_data: PreparedData) -> None:
    images = np.asarray(speckled_data.split("train").images(8))
    found = config_for(images, 4, ["a", "b", "c", "d"])
    varied = np.random.default_rng(0).integers(0, 256, (230, 8, 8, 3), np.uint8)  # two blocks and a rest
    measured = config_for(varied, 4)
    assert (measured.mean, measured.std) == (round(varied.mean() / 255, 4), round(varied.std() / 255, 4))
    assert (found.resolution, found.channels, found.architecture) == (8, 3, "small")
    assert found.mean == pytest.approx(images.mean() / 255, abs=1e-4)
    assert found.std == pytest.approx(images.std() / 255, abs=1e-4)
    assert config_for(np.zeros((2, 64, 64, 1), np.uint8), 2).architecture == "resnet50"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), np.zeros(4, np.int64), "images: float32"),
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int64), "images: uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64), "images: uint8"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(3, np.int64), "labels: int64"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int32), "labels: int32"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.full(4, 4, np.int64), "from 4 to 4"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.full(4, -1, np.int64), "from -1 to -1"),
    ],
)
def test_what_does_not_fit_is_told(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    shape = config_for(np.zeros((1, 8, 8, 3), np.uint8), 4)
    with pytest.raises(ValueError, match=message):
        train_classifier(images, labels, shape, QUICK, device=CPU)
