"""The classification accuracy score: good samples reach real data, noise is chance, shuffled labels are told."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation import cas
from cascaded_diffusion.evaluation.cas import (
    Accuracy,
    CasConfig,
    CasResult,
    classification_accuracy_score,
    measure_accuracy,
)
from cascaded_diffusion.evaluation.classification import ClassifierTraining

CPU = torch.device("cpu")
QUICK = CasConfig(epochs=25, training=ClassifierTraining(batch_size=32, learning_rate=0.02, precision="fp32"))


def score(data: PreparedData, images: np.ndarray, labels: np.ndarray, cache: Path | None = None) -> CasResult:
    train, val = data.split("train"), data.split("val")
    return classification_accuracy_score(images, labels, train, val, config=QUICK, device=CPU, cache=cache)


@pytest.fixture(scope="module")
def samples(speckled_data: PreparedData) -> tuple[np.ndarray, np.ndarray]:
    """Images that a perfect model could have made: the training images, mirrored."""
    train = speckled_data.split("train")
    return np.asarray(train.images(8))[:, :, ::-1].copy(), train.labels.copy()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share, so that the real images' classifier is trained once."""
    return tmp_path_factory.mktemp("cache")


def test_good_samples_are_as_good_as_real_images(
    speckled_data: PreparedData, samples: tuple[np.ndarray, np.ndarray], cache: Path
) -> None:
    result = score(speckled_data, *samples, cache=cache)
    assert result.samples.top1 == result.real.top1 == 1
    assert result.samples.top5 is None  # there are four classes
    assert result.recognition == 1
    assert result.ratio == 1
    assert result.classes_won == 0
    assert result.count == result.real_count == len(samples[0])
    assert result.warnings == []
    assert result.samples.per_class == (1, 1, 1, 1)


def test_noise_is_chance_and_is_told(speckled_data: PreparedData) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    result = score(speckled_data, noise, np.arange(64) % 4)
    assert result.samples.top1 <= 0.5
    assert result.real.top1 == 1
    assert result.recognition < 0.5
    assert "labels are shuffled or wrong" in " ".join(result.warnings)


def test_shuffled_labels_are_told(
    speckled_data: PreparedData, samples: tuple[np.ndarray, np.ndarray], cache: Path
) -> None:
    images, labels = samples
    shuffled = np.random.default_rng(1).permutation(labels)
    result = score(speckled_data, images, shuffled, cache=cache)
    assert result.real.top1 == 1
    assert result.recognition < 0.5
    assert result.ratio < 0.8
    assert "labels are shuffled or wrong" in " ".join(result.warnings)


def test_fewer_real_images_than_samples_is_told() -> None:
    accuracy = Accuracy(1.0, None, 0.0, (1.0, 1.0), 9)
    told = CasResult(accuracy, accuracy, 1.0, 0, count=72, real_count=64).warnings
    assert told == ["only 64 real images to compare 72 samples with"]


@pytest.mark.parametrize(("top1", "recognition", "words"), [
    (0.74, 0.9, "guesses, though their labels look right: 72 are few"), (0.76, 0.9, None),
    (0.5, 0.6, "labels are shuffled or wrong"),
])  # fmt: skip
def test_a_classifier_that_only_guesses_is_told(top1: float, recognition: float, words: str | None) -> None:
    """Of two classes, chance is one half; three quarters are taken for learnt."""
    real = Accuracy(1.0, None, 0.0, (1.0, 1.0), 9)
    told = CasResult(Accuracy(top1, None, 0.0, (1.0, 1.0), 9), real, recognition, 0, count=72, real_count=72).warnings
    assert (told == []) if words is None else (len(told) == 1 and words in told[0])


def test_real_images_are_as_many_of_each_class(speckled_data: PreparedData) -> None:
    labels = speckled_data.split("train").labels
    wanted = np.array([0, 0, 0, 2], np.int64)
    chosen = cas._like_counted(labels, wanted, 4)
    assert np.bincount(labels[chosen], minlength=4).tolist() == [3, 0, 1, 0]
    assert set(np.flatnonzero(labels == 0)[:3]) <= set(chosen.tolist())


def test_cache_spares_the_second_training(
    speckled_data: PreparedData,
    samples: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = score(speckled_data, *samples, cache=tmp_path)
    trained: list[int] = []
    train = cas.train_classifier

    def counted(images: np.ndarray, *args: object, **kwargs: object) -> object:
        trained.append(len(images))
        return train(images, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(cas, "train_classifier", counted)
    assert score(speckled_data, *samples, cache=tmp_path) == first
    assert len(trained) == 1
    (folder,) = tmp_path.iterdir()
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert score(speckled_data, *samples, cache=tmp_path) == first
    assert len(trained) == 3
    # A classifier that learned in other numbers would not be the one that the samples' is compared with.
    monkeypatch.setattr(cas, "computes_in_bf16", lambda *_: True)
    score(speckled_data, *samples, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_some_rows_are_taken_as_of_an_array(speckled_data: PreparedData) -> None:
    images, some = speckled_data.split("train").images(8), np.array([7, 3, 11])
    rows, array = cas._Chosen(images, some), np.asarray(images)[some]
    assert (rows.shape, rows.dtype, len(rows)) == (array.shape, array.dtype, 3)
    for where in (slice(1, 3), np.array([2, 0, 0])):
        assert np.array_equal(rows[where], array[where])
    assert np.array_equal(np.asarray(rows), array)


def test_accuracy_of_known_logits() -> None:
    logits = torch.eye(7)[[0, 1, 2, 3]] * 9 + torch.arange(7) * 0.1
    found = measure_accuracy(logits, np.array([0, 1, 0, 6]))
    assert found.top1 == 0.5
    assert found.top5 == pytest.approx(0.75)  # the third's own class 0 is the least likely
    assert found.standard_error == pytest.approx(0.25)
    assert found.per_class == (0.5, 1.0, None, None, None, None, 0.0)
    assert found.count == 4


def test_won_classes_are_counted(
    speckled_data: PreparedData, samples: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Accuracy(0.5, None, 0.1, (0.9, 0.2, None, 0.5), 9), Accuracy(0.5, None, 0.1, (0.8, 0.3, 0.5, 0.5), 9)]
    monkeypatch.setattr(cas, "_shared", lambda jobs: [cas._Outcome(answer, 1.0) for answer in answers])
    assert score(speckled_data, *samples).classes_won == 1


def test_ratio_without_any_real_success_is_not_a_number() -> None:
    nothing = measure_accuracy(torch.eye(2)[[0, 0]], np.array([1, 1]))
    assert math.isnan(CasResult(nothing, nothing, 0.0, 0, 2, 2).ratio)


def test_several_classifiers_are_told_by_their_mean(
    speckled_data: PreparedData, samples: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each side trains with seeds one after another; what is got right depends on the seed here, and on the side."""
    seeds = []

    def trained(
        images: np.ndarray, labels: np.ndarray, shape: object, training: ClassifierTraining, **_: object
    ) -> int:
        seeds.append((training.seed, bool((np.asarray(images) == samples[0]).all())))
        return training.seed

    def shares(logits: int, labels: np.ndarray) -> Accuracy:
        top1 = (0.5, 0.7, 0.3)[logits]
        return Accuracy(top1, top1 + 0.1, 0.0, (top1, None, 0.25, 1.0), 100)

    def told(classifier: int, images: np.ndarray) -> tuple[object, None]:
        # Of the samples the classes that the first classifier sees are right, of the others those of one in two.
        right = np.eye(4)[samples[1] if classifier == 0 else samples[1] * (samples[1] % 2)]
        return (torch.from_numpy(right) if len(images) == len(samples[0]) else classifier), None

    monkeypatch.setattr(cas, "train_classifier", trained)
    monkeypatch.setattr(cas, "predict", told)
    monkeypatch.setattr(cas, "measure_accuracy", shares)
    train, val = speckled_data.split("train"), speckled_data.split("val")
    config = QUICK.model_copy(update={"classifiers": 3})
    found = classification_accuracy_score(*samples, train, val, config=config, device=CPU)
    assert sorted(seeds) == [(0, False), (0, True), (1, False), (1, True), (2, False), (2, True)]
    assert found.each == found.real_each == (0.5, 0.7, 0.3)
    assert found.samples.top1 == pytest.approx(0.5)
    assert found.samples.top5 == pytest.approx(0.6)
    assert found.samples.per_class == (pytest.approx(0.5), None, 0.25, 1.0)
    assert found.samples.standard_error == pytest.approx(0.05)  # of 100 images
    assert found.standard_error == pytest.approx(math.hypot(0.05, 0.2 / math.sqrt(3)))
    odd = float(np.mean((samples[1] % 2 == 1) | (samples[1] == 0)))
    assert found.recognition == pytest.approx((1 + 2 * odd) / 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int64), "1 channels, the data 3"),
        (np.zeros((4, 6, 6, 3), np.uint8), np.zeros(4, np.int64), "6 pixels, the data of 4, 8"),
        (np.zeros((4, 8, 6, 3), np.uint8), np.zeros(4, np.int64), "allowed: uint8"),
        (np.zeros((4, 8, 8, 3), np.float32), np.zeros(4, np.int64), "allowed: uint8"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(3, np.int64), r"allowed: int64 \(4,\)"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.full(4, -1, np.int64), "from -1 to -1; allowed: 0 to 3"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.full(4, 4, np.int64), "from 4 to 4; allowed: 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    speckled_data: PreparedData, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score(speckled_data, images, labels)


def test_data_without_classes_is_refused(grey_data: PreparedData) -> None:
    split = grey_data.split("train")
    with pytest.raises(UserError, match="no classes"):
        classification_accuracy_score(
            np.asarray(split.images(8)), np.zeros(40, np.int64), split, split, config=QUICK, device=CPU
        )
