from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.evaluation.request import (
    METRICS,
    Subject,
    check_request,
    chosen_metrics,
    chosen_splits,
    reference_resolution,
    same_classes,
)

LABELS = np.arange(20) % 4
NAMES = ("0", "1", "2", "3")


def test_metrics_by_name_and_alias() -> None:
    assert chosen_metrics("kid, fid,fd ,cas") == ("kid", "fd", "cas")
    assert chosen_metrics(["pr"]) == ("pr",)
    assert chosen_metrics(",".join(METRICS)) == tuple(METRICS)
    with pytest.raises(UserError, match=r"metrics: 'kidd' is not known; allowed: fd, kid, .*; did you mean kid\?"):
        chosen_metrics("fd,kidd")
    with pytest.raises(UserError, match="metrics: 'fd,' has an empty entry"):
        chosen_metrics("fd,")


def test_splits(speckled_data: PreparedData, grey_data: PreparedData) -> None:
    assert chosen_splits(speckled_data, None) == ("train", "val")
    assert chosen_splits(grey_data, None) == ("train",)
    assert chosen_splits(speckled_data, "val,train,val") == ("val", "train")
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        chosen_splits(grey_data, "val")


def test_resolution_to_compare_with(colour_data: PreparedData) -> None:
    sides = {side: reference_resolution(colour_data, side) for side in (2, 4, 5, 16, 17, 32, 64)}
    assert sides == {2: 4, 4: 4, 5: 8, 16: 16, 17: 32, 32: 32, 64: 32}


def test_same_classes(speckled_data: PreparedData, colour_eye: Any, grey_data: PreparedData) -> None:
    assert same_classes(speckled_data, colour_eye)
    assert not same_classes(grey_data, colour_eye)
    assert not same_classes(speckled_data, type(colour_eye)(("0", "2", "1", "3")))
    assert not same_classes(speckled_data, type(colour_eye)(None))


def test_what_goes_together(speckled_data: PreparedData, colour_eye: Any) -> None:
    subject = Subject(20, 8, LABELS, NAMES, ("base4", "sr8"))
    check_request(tuple(METRICS), ("train", "val"), speckled_data, colour_eye, subject)
    assert colour_eye.seen == 1


@pytest.mark.parametrize(
    "metric, changes, message",
    [
        ("fd", {"count": 1}, "fd: 1 samples; at least 2 are needed"),
        ("kid", {"count": 2}, "kid: 2 samples; at least 3"),
        ("pr", {"count": 3}, "pr: 3 samples; at least 4"),
        ("cas", {"labels": np.full(20, -1)}, "cas: needs the class of every sample, these have none"),
        ("recognition", {"labels": np.full(20, -1)}, "recognition: needs the class of every sample"),
        ("cas", {"labels": np.full(20, 4)}, "cas: samples have labels up to 4; the data has classes 0 to 3"),
        (
            "cas",
            {"class_names": ("a", "b", "c", "d")},
            "cas: the samples' maker has the classes a, b, c, ..., the data",
        ),
        ("cas", {"resolution": 16}, "cas: samples have 16 pixels a side"),
        ("drift", {"stages": ("base8",)}, "drift: compares the images of neighbouring stages"),
    ],
)
def test_samples_that_cannot_have_a_metric(
    metric: str, changes: dict[str, Any], message: str, speckled_data: PreparedData, colour_eye: Any
) -> None:
    facts = {"count": 20, "resolution": 8, "labels": LABELS, "class_names": NAMES, "stages": ("base4", "sr8")}
    with pytest.raises(UserError, match=message):
        check_request((metric,), ("train",), speckled_data, colour_eye, Subject(**(facts | changes)))


@pytest.mark.parametrize("metric", ["is", "recognition"])
def test_an_extractor_without_a_classifier(metric: str, speckled_data: PreparedData, colour_eye: Any) -> None:
    blind = type(colour_eye)(logits=False)
    with pytest.raises(UserError, match=f"{metric}: eye gives features and no classifier's answers"):
        check_request((metric,), ("train",), speckled_data, blind, Subject(20, 8, LABELS))


def test_an_extractor_of_other_classes(speckled_data: PreparedData, colour_eye: Any) -> None:
    for names, words in ((("0", "1", "3", "2"), "has the classes 0, 1, 3, ..."), (None, "knows no classes by name")):
        with pytest.raises(UserError, match=f"recognition: eye {words}, the data has the classes 0, 1, 2"):
            check_request(("recognition",), ("train",), speckled_data, type(colour_eye)(names), Subject(20, 8, LABELS))


def test_data_without_classes_or_held_out_images(grey_data: PreparedData, colour_eye: Any) -> None:
    with pytest.raises(UserError, match="cas: needs classes"):
        check_request(("cas",), ("train",), grey_data, colour_eye, Subject(20, 8, LABELS))
