from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation import evaluate
from cascaded_diffusion.evaluation.cas import Accuracy, CasConfig, CasResult
from cascaded_diffusion.evaluation.evaluate import evaluate_images
from cascaded_diffusion.evaluation.scores import Origin, Score

ORIGIN = Origin(source={"kind": "samples", "name": "x.npz", "sha256": "0" * 64})


@pytest.fixture
def scored(speckled_data: PreparedData, colour_eye: Any, tmp_path: Path) -> Any:
    """``scored(images, labels, "fd,kid", **changes)``."""

    def run(images: np.ndarray, labels: np.ndarray | None, metrics: str, **changes: Any) -> dict[str, Score]:
        arguments = {"extractor": colour_eye, "provenance": ORIGIN, "cache": tmp_path, "data": speckled_data}
        arguments |= {"metrics": metrics.split(","), **changes}
        known = np.full(len(images), -1) if labels is None else np.array(labels)
        return evaluate_images(images, known, **arguments)

    return run


def _train(data: PreparedData) -> tuple[np.ndarray, np.ndarray]:
    split = data.split("train")
    return np.array(split.images(8)), np.array(split.labels)


def test_real_images_against_themselves(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    found = scored(images, labels, "fd,kid,is,pr,recognition,nn")
    assert list(found) == [
        *("fd_eye", "fd_eye_val", "kid_eye", "kid_eye_val"),
        *("precision_eye", "recall_eye", "precision_eye_val", "recall_eye_val"),
        *("is_eye", "nn_eye", "recognition_eye"),
    ]
    assert found["fd_eye"].value == pytest.approx(0, abs=1e-6)
    assert found["fd_eye_val"].value > 10 * found["fd_eye"].value
    assert (found["precision_eye"].value, found["recall_eye"].value) == (1, 1)
    held_out = len(speckled_data.split("val"))
    for key, count in (("recall_eye", len(images)), ("recall_eye_val", held_out)):  # of equally many
        assert found[key].provenance.n == found[key].provenance.reference_n == count
    assert found["kid_eye"].value < found["kid_eye_val"].value + 3 * found["kid_eye_val"].standard_error
    assert found["nn_eye"].value == 1
    assert found["nn_eye"].extra["median_ratio"] == 0
    assert 3 < found["is_eye"].value <= 4
    assert found["recognition_eye"].value == found["recognition_eye"].extra["per_class"][0] == 1


def test_provenance(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    found = scored(images[:20], labels[:20], "fd,is,pr", splits=("val", "train"))
    assert list(found) == [
        *("fd_eye", "fd_eye_train", "precision_eye", "recall_eye", "precision_eye_train", "recall_eye_train", "is_eye")
    ]
    about = found["fd_eye"].provenance
    count = len(speckled_data.split("val"))
    assert (about.n, about.split, about.reference_n, about.resolution) == (20, "val", count, 8)
    assert (about.extractor, about.extractor_hash, about.resize, about.dtype) == (
        *("eye", "e" * 64, "quarters, averaged", "fp32"),
    )
    assert about.reference_hash != found["fd_eye_train"].provenance.reference_hash
    assert about.data == "speckled.npz"
    assert about.source == ORIGIN.source
    assert set(about.versions) == {"cascaded_diffusion", "torch"}
    assert found["is_eye"].provenance.split is None
    assert found["recall_eye"].provenance.reference_n == 20  # of equally many


def test_worse_images_score_worse(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    darker = (images * 0.6).astype(np.uint8)
    near, far = (scored(x, labels, "fd,kid,pr", splits=("train",)) for x in (images, darker))
    for key in ("fd_eye", "kid_eye"):
        assert far[key].value > near[key].value + 5 * far[key].standard_error
    assert far["precision_eye"].value < 0.5


def test_inception_score_does_not_ask_for_an_order(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    order = np.argsort(labels, kind="stable")
    many = order.repeat(8)
    sorted_by_class = scored(images[many], labels[many], "is")["is_eye"]
    assert sorted_by_class.value > 2.5  # one class in each split would give 1
    assert sorted_by_class.extra["splits"] == len(many) // 50 > 4


def test_shuffled_labels_are_noticed(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    good = scored(images, labels, "fd,recognition")
    wrong = scored(images, (labels + 1) % 4, "fd,recognition")
    assert wrong["recognition_eye"].value == 0
    for score in wrong.values():
        assert any("sees the class asked for in 0.0% of the samples" in text for text in score.provenance.warnings)
    assert not any("sees the class" in text for score in good.values() for text in score.provenance.warnings)
    assert not any("sees the class" in text for text in scored(images, None, "fd")["fd_eye"].provenance.warnings)


def test_few_samples_for_a_frechet_distance(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    assert len(speckled_data.split("train")) > 24 > 2 * 11
    few = scored(images[:23], labels[:23], "fd,kid", splits=("train",))
    assert any("23 images are few for features of 12 dim" in w for w in few["fd_eye"].provenance.warnings)
    assert few["kid_eye"].provenance.warnings == ()
    assert scored(images[:24], labels[:24], "fd", splits=("train",))["fd_eye"].provenance.warnings == ()


def test_another_resolution_is_warned_of(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    for given, side, compared in ((images.repeat(2, axis=1).repeat(2, axis=2), 16, 8), (images[:, 1:7, 1:7], 6, 8)):
        score = scored(given, labels, "kid")["kid_eye"]
        (warning,) = score.provenance.warnings
        assert f"samples have {side} pixels a side and the data 4, 8" in warning
        assert (score.provenance.resolution, score.provenance.reference_resolution) == (side, compared)


def test_grey_samples_against_colours(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    grey = images.mean(axis=3, keepdims=True).astype(np.uint8)
    first, second = (scored(x, labels, "fd")["fd_eye"] for x in (grey, grey.repeat(3, axis=3)))
    assert first.value == second.value
    assert "repeated" in first.provenance.channels
    assert second.provenance.channels == "samples and real images are colour"


def test_drift_of_the_stages(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    low = np.clip(np.array(speckled_data.split("train").images(4)), 0, 240)
    high = low.repeat(2, axis=1).repeat(2, axis=2) + np.array([10, 0, 5], np.uint8)
    found = scored(images, labels, "drift", stages={"base4": low, "sr8": high, "again": high})
    assert list(found) == ["drift_sr8", "drift_again"]
    assert found["drift_sr8"].value == pytest.approx(5)
    assert found["drift_sr8"].extra["mean"] == pytest.approx([10, 0, 5])
    assert found["drift_again"].value == 0
    assert found["drift_sr8"].provenance.extractor is None


def test_classification_accuracy(
    scored: Any, speckled_data: PreparedData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = _train(speckled_data)
    got: dict[str, Any] = {}

    def result(*arguments: Any, **settings: Any) -> CasResult:
        got.update(settings, arguments=arguments)
        real = Accuracy(0.8, None, 0.03, (0.7, 0.9, None, 0.8), 30)
        return CasResult(
            Accuracy(0.6, None, 0.05, (0.8, 0.5, None, 0.5), 30), real, 0.3, 1, len(images), 9, (0.6,), (0.8,)
        )

    monkeypatch.setattr(evaluate, "classification_accuracy_score", result)
    config = CasConfig(epochs=6)
    found = scored(images, labels, "cas,fd", cas=config, splits=("train",))
    score = found["cas"]
    assert list(found) == ["fd_eye", "cas"]
    assert (score.value, score.standard_error) == (0.6, 0.05)
    assert score.extra["real"] == 0.8
    assert score.extra["ratio"] == pytest.approx(0.75)
    assert (score.extra["classes_won"], score.extra["per_class"]) == (1, [0.8, 0.5, None, 0.5])
    assert (score.extra["each"], score.extra["real_each"]) == ([0.6], [0.8])
    assert score.extra["class_names"] == ["0", "1", "2", "3"]
    assert score.extra["classifier"]["epochs"] == 6
    assert (score.provenance.split, score.provenance.reference_n) == ("val", len(speckled_data.split("val")))
    assert score.provenance.extractor is None
    assert [w.partition(" ")[0] for w in score.provenance.warnings] == ["cas:", "cas:"]
    assert (got["config"], got["cache"]) == (config, tmp_path)
    assert [part.name for part in got["arguments"][2:]] == ["train", "val"]
    assert np.array_equal(got["arguments"][0], images)


def test_copies_of_all_real_images_leave_nothing_to_compare_with(
    scored: Any, tmp_path: Path, speckled_data: PreparedData
) -> None:
    images, labels = _train(speckled_data)
    flat = np.zeros((60, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "flat.npz", arr_0=flat)
    prepare(str(tmp_path / "flat.npz"), tmp_path / "data", resolutions=[8], workers=0)
    with pytest.raises(UserError, match="nn: memorisation: half of the real images"):
        scored(images, labels, "nn", data=PreparedData.open(tmp_path / "data"))


def test_one_score_that_is_not_defined_leaves_the_others(
    scored: Any, speckled_data: PreparedData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def undefined(*_: Any) -> None:
        raise ValueError("memorisation: half of the real images are copies")

    monkeypatch.setattr(evaluate, "memorisation", undefined)
    images, labels = _train(speckled_data)
    found = scored(images, labels, "fd,nn,recognition", splits=("train",))
    assert list(found) == ["fd_eye", "recognition_eye"]
    (line,) = caplog.messages
    assert line == "nn: memorisation: half of the real images are copies; this score is left out"


def test_classifiers_that_cannot_be_trained_leave_the_others(
    scored: Any, speckled_data: PreparedData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(evaluate, "classification_accuracy_score", greedy)
    images, labels = _train(speckled_data)
    assert list(scored(images, labels, "fd,cas", splits=("train",))) == ["fd_eye"]
    (line,) = caplog.messages
    assert line == "cas was not measured (CUDA out of memory. Tried to allocate); the other scores stand"
    with pytest.raises(torch.OutOfMemoryError):
        scored(images, labels, "cas")


def test_progress(scored: Any, speckled_data: PreparedData) -> None:
    images, labels = _train(speckled_data)
    told: list[tuple[str, int, int]] = []
    scored(images, labels, "fd", watch=lambda *what: told.append(what), batch_size=16)
    count = len(images)
    assert ("features of samples", 16, count) in told
    assert ("features of train images", count, count) in told
    assert told[-1][0] == "features of val images"


def test_refused_before_any_work(scored: Any, speckled_data: PreparedData, colour_eye: Any) -> None:
    images, _ = _train(speckled_data)
    with pytest.raises(UserError, match="cas: needs the class"):
        scored(images, None, "fd,cas")
    assert colour_eye.seen <= 1
