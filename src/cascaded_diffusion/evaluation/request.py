"""What is to be measured: checked against samples, data and extractor before anything takes long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError, did_you_mean
from cascaded_diffusion.evaluation.features import Extractor

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Subject",
    "check_request",
    "chosen_metrics",
    "chosen_splits",
    "reference_resolution",
    "same_classes",
]

METRICS = {
    "fd": "Frechet distance to real images (fid with Inception's features)",
    "kid": "kernel distance to real images, unbiased for few samples",
    "is": "Inception score, of the extractor's classifier",
    "pr": "precision and recall",
    "cas": "classification accuracy score: a classifier trained on the samples",
    "nn": "samples nearer to training images than held-out images are",
    "recognition": "samples in which the extractor's classifier sees the class asked for",
    "drift": "how each stage moves the colours of the stage below",
}
DEFAULT_METRICS = ("fd", "kid", "is", "pr")
_ALIASES = {"fid": "fd"}
# Below these an estimate is not defined (a covariance, an unbiased estimate's error, a third neighbour).
_FEWEST = {"fd": 2, "kid": 3, "is": 2, "pr": 4}


@dataclass(frozen=True, eq=False)
class Subject:
    """What is known of samples before they are made.

    Attributes:
        count: how many.
        resolution: side in pixels.
        labels: int64 (N,), -1 without classes.
        class_names: names of the classes, if the samples' maker has them.
        stages: names of the stages whose images are there, in order.
    """

    count: int
    resolution: int
    labels: np.ndarray
    class_names: tuple[str, ...] | None = None
    stages: tuple[str, ...] = ()


def _listed(what: str, given: str | Sequence[str]) -> list[str]:
    words = given.split(",") if isinstance(given, str) else list(given)
    words = [word.strip() for word in words]
    if not words or not all(words):
        raise UserError(f"{what}: {given!r} has an empty entry; give names separated by commas")
    return words


def chosen_metrics(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of metrics, each once and without aliases; an unknown one is a ``UserError`` with the nearest."""
    names = [_ALIASES.get(word, word) for word in _listed("metrics", given)]
    for name in names:
        if name not in METRICS:
            hint = did_you_mean(name, METRICS)
            raise UserError(f"metrics: {name!r} is not known; allowed: {', '.join(METRICS)}{hint}")
    return tuple(dict.fromkeys(names))


def chosen_splits(data: PreparedData, given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The splits to compare with, the first of which gives scores without a suffix; default all that there are."""
    names = data.splits if given is None else _listed("split", given)
    for name in names:
        data.split(name)
    return tuple(dict.fromkeys(names))


def reference_resolution(data: PreparedData, resolution: int) -> int:
    """The data's resolution to compare with: the same, else the next larger one, else the largest."""
    return next((side for side in data.resolutions if side >= resolution), data.resolutions[-1])


def same_classes(data: PreparedData, extractor: Extractor) -> bool:
    """Whether the extractor's classifier knows the data's classes by name and order."""
    names = extractor.class_names
    return names is not None and data.class_names is not None and tuple(names) == tuple(data.class_names)


def check_request(
    metrics: Sequence[str], splits: Sequence[str], data: PreparedData, extractor: Extractor, subject: Subject
) -> None:
    """Refuse a metric that these samples, this data or this extractor cannot have.

    Runs the extractor on one real image, so that one which does not work is known at once.

    Raises:
        UserError: naming the metric and what it lacks.
    """
    side = reference_resolution(data, subject.resolution)
    for metric in metrics:
        fewest = _FEWEST.get(metric, 1)
        counts = {"samples": subject.count} | {f"{name} images": len(data.split(name)) for name in splits}
        for what, count in counts.items():
            if count < fewest:
                raise UserError(f"{metric}: {count} {what}; at least {fewest} are needed")
    probe = extractor(np.asarray(data.split(splits[0]).images(side)[:1]))
    for metric in ("is", "recognition"):
        if metric in metrics and probe.logits is None:
            raise UserError(
                f"{metric}: {extractor.name} gives features and no classifier's answers; leave {metric} out"
            )
    if "drift" in metrics and len(subject.stages) < 2:
        raise UserError("drift: compares the images of neighbouring stages; here are those of one only")
    for metric in ("cas", "recognition"):
        if metric in metrics:
            _check_labels(metric, data, subject)
    if "recognition" in metrics and not same_classes(data, extractor):
        knows = "knows no classes by name" if extractor.class_names is None else _few(extractor.class_names)
        raise UserError(f"recognition: {extractor.name} {knows}, the data {_few(data.class_names or [])}")
    if "cas" in metrics:
        _check_cas(data, subject)


def _few(names: Sequence[str]) -> str:
    return f"has the classes {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _check_labels(metric: str, data: PreparedData, subject: Subject) -> None:
    if data.classes is None:
        raise UserError(f"{metric}: needs classes, {data.folder} has none")
    low, high = int(subject.labels.min()), int(subject.labels.max())
    if low < 0:
        raise UserError(f"{metric}: needs the class of every sample, these have none (label -1)")
    if high >= data.classes:
        raise UserError(f"{metric}: samples have labels up to {high}; the data has classes 0 to {data.classes - 1}")
    if subject.class_names is not None and tuple(subject.class_names) != tuple(data.class_names or ()):
        raise UserError(
            f"{metric}: the samples' maker {_few(subject.class_names)}, the data {_few(data.class_names or [])}"
        )


def _check_cas(data: PreparedData, subject: Subject) -> None:
    if data.classes is not None and data.classes < 2:
        raise UserError(f"cas: needs two classes or more, {data.folder} has {data.classes}")
    if "val" not in data.splits:
        raise UserError(f"cas: needs held-out images to test on, {data.folder} has no val split")
    if subject.resolution not in data.resolutions:
        have = ", ".join(map(str, data.resolutions))
        raise UserError(f"cas: samples have {subject.resolution} pixels a side; {data.folder} has {have}")
